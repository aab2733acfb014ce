"""Ablation of `foveate`: `python -m scripts.ablate`.

Each part of the method is switched off or replaced, one at a time, at 1/9 and 1/18 of the tokens.
The result is compared with the whole method on the same questions of the embedded benchmark. Writes
`ablation.json` (raw figures, versions, hardware, command) and `ablation.md`. An interrupted run is
resumed by the same command.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import vlm
from compress.methods import Foveate
from compress.parse import parse_budget, split_list
from eval.answerers import ModelAnswerer
from eval.arms import Arm
from eval.benchmarks.embedded import Embedded
from scripts.common import (
    Asked,
    add_folders,
    against,
    facts,
    result_of,
    write_json,
    write_table,
)

WITHOUT: dict[str, dict[str, Any]] = {
    "saliency": {"salient": 0.0},
    "relevance to the question": {"relevant": 0.0},
    "distinctness": {"distinct": 0.0},
    "evenness": {"even": 0.0},
    "likeness in the kernel": {"appearance": None},
    "place in the kernel": {"place": None},
    "coverage (largest weights instead)": {"choice": "top"},
    "coverage (determinant instead)": {"choice": "volume"},
    "merging (dropped instead)": {"merge": False},
    "a floor of likeness for merging": {"purity": 0.0},
    "stages in the language model": {"layers": (), "ratios": ()},
    "attention by size (log size left out)": {"proportional_attention": False},
}


def arms(budget: int | float) -> dict[str, Arm]:
    """The whole method, then the method without each part, by name."""
    parts = {name: Arm(Foveate(**options), budget) for name, options in WITHOUT.items()}
    others = {
        "true positions (renumbered)": Arm("foveate", budget, "compact"),
        "all of it (cascade clustering)": Arm("cascade", budget),
    }
    return {"(nothing)": Arm("foveate", budget), **parts, **others}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.ablate", description=__doc__)
    parser.add_argument("--scenes", type=int, default=150)
    parser.add_argument("--clips", type=int, default=80)
    parser.add_argument("--split", default="test", help="val or test")
    parser.add_argument("--budgets", default="1/9,1/18", help="share of the tokens")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seed", type=int, default=0)
    add_folders(parser, work="out/ablation")
    args = parser.parse_args(argv)
    model, processor = vlm.load(args.model)
    budgets = [parse_budget(text) for text in split_list(args.budgets)]
    tried = {(name, b): arm for b in budgets for name, arm in arms(b).items()}
    asked = Asked(
        Embedded(args.split, args.scenes, args.clips),
        ModelAnswerer(model, processor, args.model),
        list(tried.values()),
        args.work,
        args.seed,
    )
    results = dict(zip(asked.records, asked.results(), strict=True))
    rows = [
        {
            "without": name,
            "budget": budget,
            **arm.describe(),
            "against_whole": against(asked.units(tried["(nothing)", budget]), asked.units(arm)),
            "result": asdict(results[arm]),
        }
        for (name, budget), arm in tried.items()
    ]
    report = facts(
        "ablate", argv, split=args.split, questions=len(asked.samples), seed=args.seed, rows=rows
    )
    render(write_json(args.output / "ablation.json", report), args.output / "ablation")
    return 0


def render(found: dict[str, Any], path: Path) -> None:
    """Write the table of a report."""
    lines = [f"{'without':<38}budget  share  accuracy   won  lost  difference  p (paired)"]
    for row in found["rows"]:
        result, beside = result_of(row["result"]), row["against_whole"]
        accuracy: Any = result.accuracy
        share = result.figures["tokens"] / result.figures["dense"]
        line = f"{row['without']:<38}{row['budget']:>6.3f}{share:>7.3f}{accuracy.mean:>10.1%}"
        if row["without"] != "(nothing)":
            line += f"{beside['gained']:>6}{beside['lost']:>6}{100 * beside['difference']:>+12.1f}"
            line += f"  {beside['p']:.2g}"
        lines.append(line)
    write_table(path, "\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
