"""Options of a multiple-choice question in one forward: `python -m scripts.study_one_pass`.

The embedded model answers questions about drawn scenes in three ways: by generating, by the
likelihood of each option with all options in one forward (`eval.one_pass`), and by the same one
option after another, on copies of the prompt's cache. Options are the up to four of the benchmark's
`mmbench.tsv`, or all answers that are right for some question of the category. Under a compression
options are always read one after another.

Writes `one-pass.json` and `one-pass.md`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vlm
from compress import compress
from eval.benchmarks.embedded import write
from eval.benchmarks.mmbench import MMBench
from eval.one_pass import option_ids, option_scores
from eval.samples import Sample
from scripts.common import RESULTS, facts, write_json, write_table
from vlm.prompts import picture_prompt

METHOD = ("foveate", 1 / 3)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its processor time in ms."""
    began = time.process_time()
    found = call()
    return found, 1e3 * (time.process_time() - began)


def ask(judge: tuple[Any, Any], sample: Sample, options: list[str]) -> dict[str, Any]:
    """Answers and times of each way. options: texts, the right one among them."""
    model, processor = judge
    inputs = picture_prompt(model, processor, [sample.media[0].load()], sample.prompt)
    content = [{"type": "image"}, {"type": "text", "text": sample.prompt}]
    ids = option_ids(model, processor, content, options)
    row: dict[str, Any] = {"answer": sample.options[sample.answer], "options": len(options)}
    for arm, attached in (("dense", None), (METHOD[0], METHOD)):
        with nullcontext() if attached is None else compress(model, *attached):
            out, ms = timed(partial(model.generate, **inputs, max_new_tokens=8, do_sample=False))
            said = out[0, inputs["input_ids"].shape[1] :]
            found = {
                "said": processor.tokenizer.decode(said, skip_special_tokens=True).strip(),
                "said_ms": ms,
            }
            known = []
            for way, together in (("together", True), ("alone", False)):
                if attached is not None and together:
                    continue
                scores, ms = timed(partial(option_scores, model, inputs, ids, together))
                found |= {way: options[int(scores.argmax())], f"{way}_ms": ms}
                known.append(scores)
            found["apart"] = float((known[0] - known[-1]).abs().max())
        row[arm] = found
    return row


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.study_one_pass", description=__doc__)
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    judge = vlm.load(args.model)
    with tempfile.TemporaryDirectory() as folder:
        _, data = write(Path(folder), "test", args.scenes, 0)
        samples = MMBench(data, circular=False, style="question").load().samples
    kinds: dict[str, list[str]] = {}
    for sample in samples:
        known = kinds.setdefault(sample.groups["category"], [])
        known += [text for text in sample.options.values() if text not in known]
    rows: dict[str, list[dict[str, Any]]] = {"few": [], "all": []}
    for sample in samples:
        for name, options in (
            ("few", list(sample.options.values())),
            ("all", kinds[sample.groups["category"]]),
        ):
            rows[name].append({"key": sample.key, **ask(judge, sample, options)})
    report = facts("study_one_pass", argv, method=METHOD, rows=rows)
    path = args.output / "one-pass"
    render(write_json(path.with_suffix(".json"), report), path)
    return 0


def render(found: dict[str, Any], path: Path) -> None:
    """Equal choices, the largest difference of a score, right answers and times."""
    lines = [f"{'options':<14}{'':<9}{'right: generated':>18}{'by option':>11}{'equal':>8}"]
    lines[0] += f"{'apart by, nats':>16}{'generated':>11}{'one pass':>10}{'one by one':>12}"
    for rows in found["rows"].values():
        counts = [row["options"] for row in rows]
        for arm in ("dense", found["method"][0]):
            own = [row[arm] for row in rows]
            best = "together" if "together" in own[0] else "alone"
            said, chosen = (
                np.mean([row[arm][way] == row["answer"] for row in rows]) for way in ("said", best)
            )
            line = f"{f'{min(counts)} to {max(counts)}':<14}{arm:<9}{said:>18.1%}{chosen:>11.1%}"
            if best == "together":
                equal = np.mean([one["together"] == one["alone"] for one in own])
                line += f"{equal:>8.1%}{max(one['apart'] for one in own):>16.1e}"
            else:
                line += f"{'-':>8}{'-':>16}"
            for way, wide in (("said", 9), ("together", 8), ("alone", 10)):
                known = [one[f"{way}_ms"] for one in own if f"{way}_ms" in one]
                line += f"{np.median(known):>{wide}.0f}ms" if known else f"{'-':>{wide + 2}}"
            lines.append(line)
    lines.append(f"questions: {len(rows)}; times: medians, the prompt included")
    write_table(path, "\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
