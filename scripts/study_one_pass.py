"""Options of a multiple-choice question in one forward: `python -m scripts.study_one_pass`.

The embedded model chooses among the colours, or the shapes, of its world by log-likelihood
(`eval.one_pass`): all options in one forward, and one after another on copies of the prompt's
cache. Are the choices equal, and what is saved?

Writes `one-pass.json` and `one-pass.md`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vlm
from eval.one_pass import option_scores
from scripts.common import RESULTS, facts, write_json, write_table
from vlm.embedded.scenes import draw, make_scene
from vlm.embedded.scenes.scene import COLOUR_NAMES
from vlm.prompts import picture_prompt


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.study_one_pass", description=__doc__)
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    model, processor = vlm.load("mini")
    end, rows = processor.tokenizer.eos_token_id, []
    for seed in range(args.scenes):
        scene = make_scene(seed, "test")
        item = scene.items[0]
        others = [other for other in scene.items if other.shape == item.shape]
        if len(others) > 1:  # the question would have several answers
            continue
        inputs = picture_prompt(
            model, processor, [draw(scene)], f"What colour is the {item.shape}?"
        )
        texts = [f"{colour} {item.shape}" for colour in COLOUR_NAMES] + list(COLOUR_NAMES)
        ids = [
            [*processor.tokenizer(text, add_special_tokens=False).input_ids, end] for text in texts
        ]
        row: dict[str, Any] = {"answer": item.colour, "options": len(texts)}
        for name, together in (("together", True), ("alone", False)):
            began = time.process_time()
            scores = option_scores(model, inputs, ids, together)
            row[name] = {
                "ms": 1e3 * (time.process_time() - began),
                "chosen": texts[int(scores.argmax())],
                "scores": scores.tolist(),
            }
        rows.append(row)
    report = facts("study_one_pass", argv, rows=rows)
    path = args.output / "one-pass"
    render(write_json(path.with_suffix(".json"), report), path)
    return 0


def render(found: dict[str, Any], path: Path) -> None:
    """Equal choices, the largest difference of a score, right answers and times."""
    rows = found["rows"]
    equal = np.mean([row["together"]["chosen"] == row["alone"]["chosen"] for row in rows])
    right = np.mean([row["together"]["chosen"] == row["answer"] for row in rows])
    apart = max(
        float(np.abs(np.subtract(row["together"]["scores"], row["alone"]["scores"])).max())
        for row in rows
    )
    times = {
        name: float(np.median([r[name]["ms"] for r in rows])) for name in ("together", "alone")
    }
    lines = [
        f"questions               {len(rows)}, of {rows[0]['options']} options each",
        f"equal choices           {equal:.1%}; scores differ by at most {apart:.1e} nats",
        f"right                   {right:.1%}",
        f"one forward             {times['together']:.0f} ms, the prompt included",
        f"one after another       {times['alone']:.0f} ms",
    ]
    write_table(path, "\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
