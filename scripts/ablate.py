"""What each ingredient of `foveate` gives: `python -m scripts.ablate`.

Every part is switched off (or swapped) alone, at 1/9 and 1/18 of the tokens, and paired with the
whole method on the same questions of the embedded model. Writes `ablation.json` (raw figures,
versions, hardware, command) and `ablation.md`. An interrupted run goes on where it was.
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
from compress.methods import Foveate
from compress.parse import split_list
from eval.answerers import ModelAnswerer
from eval.arms import Arm
from eval.benchmarks.embedded import Embedded
from eval.records import read_records
from eval.runner import open_run, run, versions
from eval.statistics import paired
from eval.summary import score_all, summarise

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
    "attention as it is (log size added)": {"log_size": True},
}


def arms(budget: int) -> dict[str, Arm]:
    """The whole method, then each part off, by name."""
    parts = {name: Arm(Foveate(**options), budget) for name, options in WITHOUT.items()}
    others = {
        "true positions (renumbered)": Arm("foveate", budget, "compact"),
        "all of it (cascade clustering)": Arm("cascade", budget),
    }
    return {"the whole": Arm("foveate", budget), **parts, **others}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.ablate", description=__doc__)
    parser.add_argument("--scenes", type=int, default=150)
    parser.add_argument("--split", default="test", help="val or test")
    parser.add_argument("--budgets", default="16,8", help="tokens an image, of 144")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("out/ablation"), help="raw answers")
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    args = parser.parse_args(argv)
    benchmark = Embedded(args.split, args.scenes)
    samples = benchmark.load().samples
    model, processor = vlm.load(args.model)
    answerer = ModelAnswerer(model, processor, args.model)
    sizes = {"batch_size": 20, "seed": args.seed}
    folder = open_run(args.work, benchmark, samples, answerer, **sizes)
    budgets = [int(text) for text in split_list(args.budgets)]
    run(folder, samples, answerer, [a for b in budgets for a in arms(b).values()], **sizes)
    lines = [f"{'without':<36}budget  tokens  accuracy   won  lost  difference  p (paired)"]
    rows = []
    for budget in budgets:
        tried = arms(budget)
        records = {name: read_records(folder / arm.folder) for name, arm in tried.items()}
        units = {n: benchmark.units(score_all(benchmark, samples, r)) for n, r in records.items()}
        whole = units["the whole"]
        for name, own in units.items():
            (result,) = summarise(benchmark, samples, {tried[name]: records[name]})
            found = paired([u.value for u in whole], [u.value for u in own],
                           [u.cluster for u in whole])  # fmt: skip
            accuracy: Any = result.accuracy
            line = f"{name if name != 'the whole' else '(nothing)':<36}{budget:>6}"
            line += f"{result.figures['tokens']:>8.1f}{100 * accuracy.mean:>9.1f}%"
            if name != "the whole":
                line += f"{found.gained:>6}{found.lost:>6}{100 * found.difference:>+12.1f}"
                line += f"  {found.p:.2g}"
            lines.append(line)
            rows.append({"without": name, "budget": budget, **tried[name].describe(),
                         "against_whole": asdict(found), "result": asdict(result)})  # fmt: skip
    text = "\n".join(lines)
    print(text)
    facts = {
        "command": shlex.join(["python", "-m", "scripts.ablate", *(argv or sys.argv[1:])]),
        "split": args.split,
        "questions": len(samples),
        "seed": args.seed,
        "versions": versions(),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "gpu": None},
        "rows": rows,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "ablation"
    path.with_suffix(".json").write_text(json.dumps(facts, indent=1, default=repr) + "\n")
    path.with_suffix(".md").write_text(f"```\n{text}\n```\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
