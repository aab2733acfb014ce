"""Where attention goes, dense and reduced: `python -m scripts.study_attention`.

The embedded model is asked one question about each of some stacks of drawn pictures
(`compress.probing.attention_mass`): mean shares of the attention of the prompt's last token, by
segment and by place, and how right answers depend on the place of the picture that is asked about.

Writes `attention.json`, `attention.md` and `attention.png`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vlm
from compress import compress
from compress.probing.attention_mass import attention_mass
from compress.probing.mass_picture import draw_mass
from scripts.common import RESULTS, facts, write_json, write_table
from scripts.study_needle import stack
from vlm.embedded.scenes import draw
from vlm.prompts import picture_prompt

ARMS: dict[str, tuple[str, float, str]] = {
    "dense": ("uniform", 1.0, "original"),
    "foveate 1/9": ("foveate", 1 / 9, "original"),
    "foveate 1/9, compact": ("foveate", 1 / 9, "compact"),
}
BINS = 8


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.study_attention", description=__doc__)
    parser.add_argument("--stacks", type=int, default=24)
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    model, processor = vlm.load("mini")
    model.set_attn_implementation("eager")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS}
    for seed in range(args.stacks):
        scenes, asked = stack(seed, args.pictures, "test")
        pictures = [draw(scene) for scene in scenes]
        place = next(n for n, scene in enumerate(scenes) if scene.sign or scene.dot)
        for question in asked:
            inputs = picture_prompt(model, processor, pictures, question.text)
            for name, (method, budget, positions) in ARMS.items():
                mass = attention_mass(model, inputs, method, budget, positions=positions)
                with compress(model, method, budget, positions=positions):
                    out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
                said = processor.tokenizer.decode(
                    out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
                )
                right = said.strip() == question.answer
                found[name].append({"place": place, "right": right, **mass.facts(BINS)})
    report = facts("study_attention", argv, stacks=args.stacks, pictures=args.pictures, rows=found)
    path = args.output / "attention"
    render(write_json(path.with_suffix(".json"), report), path)
    return 0


def render(found: dict[str, Any], path: Path) -> None:
    """Means over prompts as a table, and a picture."""
    lines = [f"{'':<22}{'rollout:':>10}{'first':>8}{'before':>8}{'visual':>8}{'after':>8}   of the "
             f"visual, by place{'':<34}right, by place of the picture asked about"]  # fmt: skip
    drawn = {}
    for name, rows in found["rows"].items():
        parts = {
            part: np.mean([row["parts"][part] for row in rows], 0).tolist()
            for part in rows[0]["parts"]
        }
        places = np.mean([row["places"] for row in rows], 0)
        drawn[name] = {"parts": parts, "places": places.tolist()}
        share = places[-1] / places[-1].sum()
        line = f"{name:<32}" + "".join(f"{shares[-1]:>8.1%}" for shares in parts.values())
        line += "   " + "".join(f"{value:>6.1%}" for value in share) + "   "
        for place in range(found["pictures"]):
            own = [row["right"] for row in rows if row["place"] == place]
            line += f"{np.mean(own):>6.0%} of {len(own)}" if own else f"{'-':>6}"
        lines.append(line)
    write_table(path, "\n".join(lines))
    draw_mass(drawn, path.with_suffix(".png"))


if __name__ == "__main__":
    sys.exit(main())
