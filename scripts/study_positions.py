"""Where tokens stand after a reduction, and what that costs: `python -m scripts.study_positions`.

On the embedded model, training-free, the same questions for all:

- home: what is left stands where it stood. compact: it is numbered anew without gaps. For each
  method and budget the paired difference, overall and by category.
- slots: a merged token carries K of its members' places (PPE), for methods that merge most of what
  they keep; K = 1 is the fair control. Contiguous runs of rotary channels, and strided ones.

Writes `positions.json` (raw figures, versions, hardware, command), `positions.md` and
`positions.png`. An interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import vlm
from compress.parse import parse_budget, split_list
from eval.answerers import ModelAnswerer
from eval.arms import DENSE, Arm
from eval.benchmarks.embedded import Embedded
from eval.records import read_records
from eval.runner import open_run, run, versions
from eval.samples import Unit
from eval.statistics import paired
from eval.summary import score_all


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.study_positions", description=__doc__)
    parser.add_argument("--scenes", type=int, default=150)
    parser.add_argument("--methods", default="duet,foveate,uniform,random")
    parser.add_argument("--budgets", default="48,16,8")
    parser.add_argument("--merging", default="pool,tome,chatunivi", help="methods for the slots")
    parser.add_argument("--slots", default="2,4,8")
    parser.add_argument("--merged-budgets", default="48")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("out/accuracy"), help="raw answers")
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    args = parser.parse_args(argv)
    duels = [
        (Arm(method, budget), Arm(method, budget, "compact"))
        for budget in map(parse_budget, split_list(args.budgets))
        for method in split_list(args.methods)
    ]
    duels += [
        (Arm(method, budget), Arm(method, budget, "home", int(slots), layout))
        for budget in map(parse_budget, split_list(args.merged_budgets))
        for method in split_list(args.merging)
        for layout in ("contiguous", "strided")
        for slots in split_list(args.slots)
    ]
    arms = list(dict.fromkeys([DENSE, *(arm for duel in duels for arm in duel)]))
    model, processor = vlm.load(args.model)
    benchmark = Embedded("test", args.scenes)
    samples = benchmark.load().samples
    answerer = ModelAnswerer(model, processor, args.model)
    sizes = {"batch_size": 20, "seed": args.seed}
    folder = open_run(args.work, benchmark, samples, answerer, **sizes)
    run(folder, samples, answerer, arms, **sizes)
    units = {
        arm: benchmark.units(score_all(benchmark, samples, read_records(folder / arm.folder)))
        for arm in arms
    }
    kinds = sorted({s.groups["category"] for s in samples})
    rows = [compare(units, control, arm, kinds) for control, arm in duels]
    text = table(rows, kinds)
    print(text)
    facts = {
        "command": shlex.join(["python", "-m", "scripts.study_positions", *(argv or sys.argv[1:])]),
        "questions": len(samples),
        "seed": args.seed,
        "versions": versions(),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "gpu": None},
        "dense": sum(u.value for u in units[DENSE]) / len(samples),
        "rows": rows,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "positions.json").write_text(json.dumps(facts, indent=1) + "\n")
    (args.output / "positions.md").write_text(f"```\n{text}\n```\n")
    draw(rows, kinds, args.output / "positions.png")
    return 0


def compare(
    units: dict[Arm, list[Unit]], control: Arm, arm: Arm, kinds: list[str]
) -> dict[str, Any]:
    """Accuracy of both, and the paired difference, overall and by category."""

    def difference(kind: str | None) -> dict[str, Any]:
        a, b = (
            [u for u in units[x] if kind in (None, u.groups["category"])] for x in (control, arm)
        )
        found = paired([u.value for u in a], [u.value for u in b], [u.cluster for u in a])
        return asdict(found) | {
            "control": sum(u.value for u in a) / len(a),
            "value": sum(u.value for u in b) / len(b),
        }

    return {
        "control": control.title,
        "arm": arm.title,
        "all": difference(None),
        "by": {kind: difference(kind) for kind in kinds},
    }


def table(rows: list[dict[str, Any]], kinds: list[str]) -> str:
    """The differences as text, in points."""
    wide = max(len(row["arm"]) for row in rows) + 2
    lines = [
        f"{'':<{wide}}{'home':>7}{'this':>7}{'+/-':>7}{'p':>8}"
        + "".join(f"{kind:>10}" for kind in kinds)
    ]
    for row in rows:
        found = row["all"]
        line = f"{row['arm']:<{wide}}{found['control']:>7.1%}{found['value']:>7.1%}"
        line += f"{100 * found['difference']:>+7.1f}{found['p']:>8.2g}"
        line += "".join(f"{100 * row['by'][kind]['difference']:>+10.1f}" for kind in kinds)
        lines.append(line)
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], kinds: list[str], path: Path) -> None:
    """The difference to the control, with its 95% interval, a line a comparison."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.25 * len(rows) + 1.2), constrained_layout=True)
    for place, row in enumerate(rows):
        found = row["all"]
        mean, low, high = (100 * found[k] for k in ("difference", "low", "high"))
        axes.errorbar(
            mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color="#0072B2",
            ecolor="#999999", markersize=4,
        )  # fmt: skip
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row["arm"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("points of accuracy, beside the same with home positions (95% intervals)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
