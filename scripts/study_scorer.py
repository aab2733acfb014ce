"""A scorer of visual tokens, learned on the embedded model, beside training-free methods.

    python -m scripts.study_scorer

The scorer learns from questions about training scenes, with all else frozen (train/scoring.py).
Then the model answers the validation split of the embedded benchmark with each method, and each is
compared with the scorer, paired by question. Writes `<name>.json` (raw figures, versions, hardware,
command) and `<name>.md`. An interrupted run is resumed by the same command.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import vlm
from compress.methods import Learned, Method
from compress.parse import parse_budget, split_list
from eval.answerers import ModelAnswerer
from eval.arms import DENSE, Arm
from eval.benchmarks.embedded import Embedded
from scripts.common import Asked, add_folders, against, facts, mean, write_json, write_table
from scripts.study_trained import write_data
from scripts.tuning import tune

SETTINGS = [
    "learning_rate=null",
    "learning_rate.scorer=1e-3",
    "scorer.hidden=128",
    "optimizer.batch=8",
    "optimizer.micro_batch=8",
    "optimizer.weight_decay=0",
    "log.every=25",
]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--methods", default="duet,foveate,visionzip,divprune,random")
    parser.add_argument("--budgets", default="1/3,1/9,1/18", help="share of the tokens")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--drawn", type=int, default=800, help="scenes to learn from")
    parser.add_argument("--scenes", type=int, default=50, help="scenes of the validation split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="scorer", help="of the files that are written")
    add_folders(parser, work="out/scorer")
    args = parser.parse_args(argv)
    write_data(args.work, args.drawn)
    settings = [*SETTINGS, f"optimizer.steps={args.steps}", f"seed={args.seed}"]
    folder = args.work / f"scorer-{args.steps}-{args.seed}"
    training = tune("mini", args.work, folder, settings)
    budgets = [float(parse_budget(text)) for text in split_list(args.budgets)]
    methods: list[str | Method] = [Learned(str(folder)), *split_list(args.methods)]
    arms = {(m, b): Arm(m, b) for b in budgets for m in methods}
    model, processor = vlm.load("mini")
    benchmark = Embedded("val", args.scenes, clips=0)
    answerer = ModelAnswerer(model, processor, "mini")
    asked = Asked(benchmark, answerer, [DENSE, *arms.values()], args.work / "answers", args.seed)
    dense, rows = asked.units(DENSE), []
    for (method, budget), arm in arms.items():
        own, learned = asked.units(arm), asked.units(arms[methods[0], budget])
        name = method if isinstance(method, str) else "learned"
        row: dict[str, Any] = {"method": name, "budget": budget}
        row |= {"right": mean(own), "against_learned": against(learned, own)}
        rows.append(row | {"against_dense": against(dense, own)})
    report = facts(
        "study_scorer",
        argv,
        split="val",
        questions=len(dense),
        seed=args.seed,
        settings=settings,
        dense=mean(dense),
        training=training,
        rows=rows,
    )
    render(write_json(args.output / f"{args.name}.json", report), args.output / args.name)
    return 0


def render(found: dict[str, Any], path: Path) -> None:
    """Write the table of a report."""
    lines = [
        f"{'':12}{'budget':>8}{'right':>8}{'+/- learned':>13}{'p':>9}   dense {found['dense']:.1%}"
    ]
    for row in found["rows"]:
        beside = row["against_learned"]
        line = f"{row['method']:12}{row['budget']:>8.3f}{row['right']:>8.1%}"
        lines.append(f"{line}{100 * beside['difference']:>+13.1f}{beside['p']:>9.2g}")
    write_table(path, "\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
