"""Chooses the defaults of `foveate` on the validation split: `python -m scripts.tune_foveate`.

The parts are tuned one after the other. All values of a part are tried with the current values of
the others. The value with the highest accuracy of the embedded model, mean over the budgets, is
kept if it is better than the current one by more than `--margin`. The test split is not used.

Writes `tuning.json` (raw figures, versions, hardware, command) and `tuning.md`. An interrupted run
is resumed by the same command.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import vlm
from compress.methods import Foveate
from compress.parse import parse_budget, split_list
from eval.answerers import ModelAnswerer
from eval.arms import Arm
from eval.benchmarks.embedded import Embedded
from scripts.common import Asked, add_folders, facts, mean, write_json, write_table

TRIES: tuple[list[dict[str, Any]], ...] = (
    [{"place": v} for v in (0.5, 0.7, 1.4, 2.0, 4.0, None)],
    [{"appearance": v} for v in (0.2, 0.25, 0.5, 0.7)],
    [
        {"layers": (0.5, 0.75), "ratios": (0.5, 0.0)},
        {"layers": (0.5, 0.75), "ratios": (0.7, 0.3)},
        {"layers": (0.25, 0.75), "ratios": (0.4, 0.0)},
        {"layers": (0.25, 0.75), "ratios": (0.8, 0.2)},
        {"layers": (0.75,), "ratios": (0.0,)},
        {"layers": (), "ratios": ()},
    ],
    [{"purity": v} for v in (0.0, 0.3, 0.7)],
    [{"proportional_attention": False}],
    [{"even": v} for v in (0.0, 0.25, 0.5, 2.0)],
    [{"salient": v} for v in (1.0, 4.0, 8.0)],
    [{"relevant": v} for v in (0.0, 0.5, 2.0)],
    [{"distinct": v} for v in (0.0, 0.5, 2.0)],
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.tune_foveate", description=__doc__)
    parser.add_argument("--budgets", default="1/3,1/9,1/18", help="share of the tokens")
    parser.add_argument("--scenes", type=int, default=120)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--margin", type=float, default=0.005, help="share of the questions")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seed", type=int, default=0)
    add_folders(parser, work="out/tuning")
    args = parser.parse_args(argv)
    budgets = [parse_budget(text) for text in split_list(args.budgets)]
    model, processor = vlm.load(args.model)
    answerer = ModelAnswerer(model, processor, args.model)
    benchmark = Embedded("val", args.scenes, args.clips)
    accuracies: dict[Foveate, list[float]] = {}

    def score(method: Foveate) -> float:
        """The accuracy, mean over the budgets."""
        if method not in accuracies:
            arms = [Arm(method, budget) for budget in budgets]
            asked = Asked(benchmark, answerer, arms, args.work, args.seed)
            units = [asked.units(arm) for arm in arms]
            accuracies[method] = [mean(each) for each in units]
        return sum(accuracies[method]) / len(budgets)

    best, rows = Foveate(), []
    for number, values in enumerate(TRIES):
        tried = [best, *(replace(best, **value) for value in values)]
        winner = max(tried, key=score)
        if score(winner) - score(best) > args.margin:
            best = winner
        for method, value in zip(tried, [{}, *values], strict=True):
            row = {"part": number, "changed": value, "kept": method == best, "mean": score(method)}
            rows.append({**row, "method": repr(method), "accuracy": accuracies[method]})
        print(f"{score(best):.1%} {best}", flush=True)
    told = {"budgets": budgets, "seed": args.seed, "rows": rows, "best": repr(best)}
    render(
        write_json(args.output / "tuning.json", facts("tune_foveate", argv, **told)),
        args.output / "tuning",
    )
    return 0


def render(found: dict[str, Any], path: Path) -> None:
    """Write the table of a report: the values tried for each part, and those kept (*)."""
    lines = [f"{'':44}" + "".join(f"{budget:>8.3f}" for budget in found["budgets"]) + "    mean"]
    for row in found["rows"]:
        told = ", ".join(f"{k}={v}" for k, v in row["changed"].items()) or "(as it was)"
        each = "".join(f"{value:>8.1%}" for value in row["accuracy"])
        lines.append(f"{told:44}{each}{row['mean']:>8.1%}{' *' if row['kept'] else ''}")
    write_table(path, "\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
