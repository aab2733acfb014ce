"""Positions of the tokens that are kept, and their accuracy: `python -m scripts.study_positions`.

The embedded model answers the same questions, training-free, in two comparisons:

- Original positions against compact ones, which number the kept tokens without gaps. The paired
  difference is given for each method and budget, overall and by category.
- Slots: a merged token carries the positions of K of its members (PPE), with contiguous or strided
  rotary channels, for methods that merge most of the tokens that they keep. K = 1 is the control.

Writes `<name>.json` (raw figures, versions, hardware, command), `<name>.md` and `<name>.png`. An
interrupted run is resumed by the same command.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import vlm
from compress.parse import parse_budget, split_list
from eval.__main__ import DTYPES
from eval.answerers import ModelAnswerer
from eval.arms import DENSE, Arm
from scripts.common import (
    Asked,
    add_folders,
    against,
    canvas,
    facts,
    mean,
    questions_for,
    write_json,
    write_table,
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.study_positions", description=__doc__)
    parser.add_argument("--scenes", type=int, default=150)
    parser.add_argument("--clips", type=int, default=80)
    parser.add_argument("--methods", default="duet,foveate,uniform,random")
    parser.add_argument("--budgets", default="1/3,1/9,1/18")
    parser.add_argument("--merging", default="pool,tome,chatunivi", help="methods for the slots")
    parser.add_argument("--slots", default="2,4", help="divisors of the model's rotary sections")
    parser.add_argument("--merged-budgets", default="1/3")
    parser.add_argument("--name", default="positions", help="of the files that are written")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--split", default="test")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--seed", type=int, default=0)
    add_folders(parser, work="out/methods")
    args = parser.parse_args(argv)
    duels = [
        (Arm(method, budget), Arm(method, budget, "compact"))
        for budget in map(parse_budget, split_list(args.budgets))
        for method in split_list(args.methods)
    ]
    duels += [
        (Arm(method, budget), Arm(method, budget, "original", int(slots), layout))
        for budget in map(parse_budget, split_list(args.merged_budgets))
        for method in split_list(args.merging)
        for layout in ("contiguous", "strided")
        for slots in split_list(args.slots)
    ]
    arms = list(dict.fromkeys([DENSE, *(arm for duel in duels for arm in duel)]))
    model, processor = vlm.load(args.model, dtype=DTYPES[args.dtype])
    benchmark = questions_for(args.model, args.split, args.scenes, args.clips)
    answerer = ModelAnswerer(model, processor, args.model)
    asked = Asked(benchmark, answerer, arms, args.work, args.seed)
    report = facts(
        "study_positions",
        argv,
        questions=len(asked.samples),
        seed=args.seed,
        kinds=asked.categories,
        rows=[compare(asked, control, arm) for control, arm in duels],
    )
    render(write_json(args.output / f"{args.name}.json", report), args.output / args.name)
    return 0


def compare(asked: Asked, control: Arm, arm: Arm) -> dict[str, Any]:
    """Accuracy with both, and the paired difference, overall and by category."""

    def difference(kind: str | None) -> dict[str, Any]:
        a, b = (
            [u for u in asked.units(x) if kind in (None, u.groups["category"])]
            for x in (control, arm)
        )
        return against(a, b) | {
            "control": mean(a),
            "value": mean(b),
        }

    return {
        "control": control.title,
        "arm": arm.title,
        "all": difference(None),
        "by": {kind: difference(kind) for kind in asked.categories},
    }


def render(found: dict[str, Any], path: Path) -> None:
    """Write the differences in points as a table, and draw them with their 95% intervals."""
    rows, kinds = found["rows"], found["kinds"]
    wide = max(len(row["arm"]) for row in rows) + 2
    head = f"{'':<{wide}}{'original':>7}{'this':>7}{'+/-':>7}{'p':>8}"
    lines = [head + "".join(f"{kind:>10}" for kind in kinds)]
    for row in rows:
        whole = row["all"]
        line = f"{row['arm']:<{wide}}{whole['control']:>7.1%}{whole['value']:>7.1%}"
        line += f"{100 * whole['difference']:>+7.1f}{whole['p']:>8.2g}"
        line += "".join(f"{100 * row['by'][kind]['difference']:>+10.1f}" for kind in kinds)
        lines.append(line)
    write_table(path, "\n".join(lines))
    figure, axes = canvas(8, 0.25 * len(rows) + 1.2)
    for place, row in enumerate(rows):
        mean, low, high = (100 * row["all"][k] for k in ("difference", "low", "high"))
        axes.errorbar(
            mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color="#0072B2",
            ecolor="#999999", markersize=4,
        )  # fmt: skip
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row["arm"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("points of accuracy, against the same with original positions (95% intervals)")
    figure.savefig(path.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    sys.exit(main())
