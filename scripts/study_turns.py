"""Two questions about one picture: `python -m scripts.study_turns`.

A method that reads the first question cuts for that question, and the second one is asked on what
is left. Each question but the first of a collage is asked alone, and after the one before it on the
same cache, dense and reduced. Writes `<name>.json` and `<name>.md`. An interrupted run is resumed
by the same command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import vlm
from compress.parse import parse_budget, split_list
from eval.answerers import DTYPES, ModelAnswerer
from eval.arms import DENSE, Arm
from eval.benchmarks.collage import Collage
from eval.samples import Unit
from eval.statistics import Paired, interval
from scripts.common import Asked, add_folders, against, facts, write_json, write_table


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.study_turns", description=__doc__)
    parser.add_argument("--split", choices=("val", "test", "unseen"), default="val")
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--methods", default="foveate,duet,cdpruner,divprune")
    parser.add_argument("--budgets", default="1/9", help="share of the tokens")
    parser.add_argument("--name", default="turns", help="of the files that are written")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    add_folders(parser, work="out/turns")
    args = parser.parse_args(argv)
    budgets = [parse_budget(text) for text in split_list(args.budgets)]
    arms = [DENSE, *(Arm(m, b) for b in budgets for m in split_list(args.methods))]
    model, processor = vlm.load("small", dtype=DTYPES[args.dtype])
    answerer = ModelAnswerer(model, processor, "small")
    benchmark = Collage(args.split, args.scenes)
    alone = Asked(benchmark, answerer, arms, args.work, args.seed)
    after = Asked(replace(benchmark, kind="turns"), answerer, arms, args.work, args.seed)
    report = facts(
        "study_turns",
        argv,
        split=args.split,
        scenes=args.scenes,
        dtype=args.dtype,
        seed=args.seed,
        questions=len(after.samples),
        rows=[row_of(arm, alone, after, args.seed) for arm in arms],
    )
    render(write_json(args.output / f"{args.name}.json", report), args.output / args.name)
    return 0


def row_of(arm: Arm, alone: Asked, after: Asked, seed: int) -> dict[str, Any]:
    """Accuracy of the same questions alone and in the second turn, and their paired test."""
    second = after.units(arm)
    keys = {unit.key for unit in second}
    first = [unit for unit in alone.units(arm) if unit.key in keys]
    return {
        "title": arm.title,
        "alone": asdict(accuracy(first, seed)),
        "after": asdict(accuracy(second, seed)),
        "against": against(first, second),
    }


def accuracy(units: Sequence[Unit], seed: int) -> Any:
    """The share that is right, with its interval by picture."""
    return interval([u.value for u in units], [u.cluster for u in units], seed=seed)


def render(found: dict[str, Any], path: Path) -> None:
    """Write the table of a report."""
    lines = [f"{'':18}{'asked alone':>24}{'second on the cache':>26}  won lost       p"]
    for row in found["rows"]:
        cells = [
            f"{row[side]['mean']:.1%} ({row[side]['low']:.0%} .. {row[side]['high']:.0%})"
            for side in ("alone", "after")
        ]
        test = Paired(**row["against"])
        line = f"{row['title']:18}{cells[0]:>24}{cells[1]:>26}{test.gained:>5}{test.lost:>5}"
        lines.append(f"{line}{test.p:>8.2g}")
    write_table(path, "\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
