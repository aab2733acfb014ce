"""What pruning schedules in the language model cost: `python -m scripts.study_schedule`.

For DUET and `foveate`, at equal mean tokens over the layers: the published schedule, which drops
all visual tokens from three quarters of the depth on; the shipped one; the one that follows from
the model's probe (`compress.probe`); and none, with every token kept to the last layer. Beside
them: random pruning before the language model. Each is compared with the published schedule on the
same questions; p is the paired test's, after Holm's correction over the table.

The probe is the saved one. Without one, it is measured first: on drawn training pictures, or on 32
questions about training collages for "small".

Writes `schedule-NAME.json` (raw figures, versions, hardware, command), `.md` and the probe's
picture.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import vlm
from compress import Probe, probe
from compress.methods import Duet, Foveate
from compress.parse import parse_budget, split_list
from compress.probing.verdict import draw_curves, probe_of
from eval.__main__ import DTYPES
from eval.answerers import ModelAnswerer
from eval.arms import DENSE, Arm
from eval.statistics import holm
from scripts.common import (
    Asked,
    add_folders,
    against,
    facts,
    questions_for,
    result_of,
    write_json,
    write_table,
)
from vlm.families import adapter_of

PUBLISHED: dict[str, Any] = {"layers": (0.5, 0.75), "ratios": (0.5, 0.0)}
NONE: dict[str, Any] = {"layers": (), "ratios": ()}


def arms(budget: int | float) -> dict[tuple[str, str], Arm]:
    """(method, schedule) -> arm."""
    return {
        ("duet", "shipped"): Arm("duet", budget),
        ("duet", "published"): Arm(Duet(variant="released"), budget),
        ("duet", "probed"): Arm("duet", budget, schedule="probed"),
        ("duet", "none"): Arm(Duet(**NONE), budget),
        ("foveate", "shipped"): Arm("foveate", budget),
        ("foveate", "published"): Arm(Foveate(**PUBLISHED), budget),
        ("foveate", "probed"): Arm("foveate", budget, schedule="probed"),
        ("foveate", "none"): Arm(Foveate(**NONE), budget),
        ("random", "none"): Arm("random", budget),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.study_schedule", description=__doc__)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--name", default="mini", help="of the judge, in file names")
    parser.add_argument("--budgets", default="1/3,1/9", help="share of the tokens")
    parser.add_argument("--split", default="test", help="val or test")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--seed", type=int, default=0)
    add_folders(parser, work="out/schedule")
    args = parser.parse_args(argv)
    budgets = [parse_budget(text) for text in split_list(args.budgets)]
    model, processor = vlm.load(args.model, dtype=DTYPES[args.dtype])
    verdict = saved_probe(model, processor, args.model)
    tried = {(b, *key): arm for b in budgets for key, arm in arms(b).items()}
    benchmark = questions_for(args.model, args.split, args.scenes, args.clips)
    answerer = ModelAnswerer(model, processor, args.model)
    asked = Asked(benchmark, answerer, [DENSE, *tried.values()], args.work, args.seed)
    results = dict(zip(asked.records, asked.results(), strict=True))
    rows = [
        {
            "budget": budget,
            "method": method,
            "schedule": schedule,
            "against_published": beside(asked, tried, (budget, method, schedule)),
            "result": asdict(results[arm]),
        }
        for (budget, method, schedule), arm in tried.items()
    ]
    found = facts(
        "study_schedule",
        argv,
        judge=args.name,
        split=args.split,
        dtype=args.dtype,
        questions=len(asked.samples),
        seed=args.seed,
        probe={"text": str(verdict), **verdict.curves()},
        dense=asdict(results[DENSE]),
        rows=rows,
    )
    name = f"schedule-{args.name}"
    render(write_json(args.output / f"{name}.json", found), args.output / name)
    return 0


def saved_probe(model: Any, processor: Any, judge: str) -> Probe:
    """The model's saved probe; measured and saved if there is none."""
    try:
        saved = probe_of("probed", adapter_of(model))
    except ValueError:
        saved = None
    return saved or probe(model, processor, collages() if judge == "small" else None)


def collages(scenes: int = 8, each: int = 4) -> list[tuple[Any, str]]:
    """Questions about training collages, as many of each."""
    taken: Counter[str | None] = Counter()
    made = []
    for sample in questions_for("small", "train", scenes, 0).load().samples:
        taken[sample.cluster] += 1
        if taken[sample.cluster] <= each:
            made.append((sample.media[0].load(), sample.prompt))
    return made


def beside(asked: Asked, tried: dict[Any, Arm], key: tuple[float, str, str]) -> Any:
    """The paired test against the same method's published schedule; None for that one itself."""
    published = tried.get((key[0], key[1], "published"))
    if published is None or key[2] == "published":
        return None
    return against(asked.units(published), asked.units(tried[key]))


def render(found: dict[str, Any], path: Path) -> None:
    """The table and the probe's picture, from the facts."""
    draw_curves(found["probe"], path.with_suffix(".png"))
    dense: Any = result_of(found["dense"])
    lines = [found["probe"]["text"], "", f"dense: {dense.accuracy.mean:.1%}", ""]
    lines.append(
        f"{'budget':>6}  {'method':<9}{'schedule':<11}{'mean':>6}{'accuracy':>10}"
        f"{'won':>6}{'lost':>6}{'difference':>12}  p (Holm)"
    )
    tests = [row["against_published"] for row in found["rows"] if row["against_published"]]
    adjusted = iter(holm([test["p"] for test in tests]))
    for row in found["rows"]:
        result, test = result_of(row["result"]), row["against_published"]
        accuracy: Any = result.accuracy
        line = f"{row['budget']:>6.3f}  {row['method']:<9}{row['schedule']:<11}"
        line += f"{result.figures['tokens']:>6.1f}{accuracy.mean:>10.1%}"
        if test:
            line += f"{test['gained']:>6}{test['lost']:>6}{100 * test['difference']:>+12.1f}"
            line += f"  {next(adjusted):.2g}"
        lines.append(line)
    write_table(path, "\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
