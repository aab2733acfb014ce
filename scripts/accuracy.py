"""Accuracy of the embedded model, dense and reduced: `python -m scripts.accuracy`.

DUET, and random, strided and pooled tokens as fair baselines, at 1/3 and 1/9 of the tokens, on the
same questions about the same held-out scenes and clips; beside them chance, and what the model
answers without seeing anything ("blind"). Writes `accuracy.json` (raw figures, versions, hardware,
command), `accuracy.png` and `accuracy.md`. An interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import vlm
from compress import list_methods
from compress.parse import parse_budget, split_list
from eval.answerers import ModelAnswerer
from eval.arms import DENSE, Arm
from eval.benchmarks.embedded import Embedded
from eval.records import read_records
from eval.report import table
from eval.runner import open_run, run, versions
from eval.samples import Sample
from eval.statistics import paired
from eval.summary import Result, score_all, summarise

COLOURS = ("#333333", "#0072B2", "#E69F00", "#CC79A7", "#009E73", "#D55E00")  # Okabe and Ito


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.accuracy", description=__doc__)
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--methods", default="duet,random,uniform,pool", help="or 'all'")
    parser.add_argument("--budgets", default="1/3,1/9", help="share of the tokens")
    parser.add_argument("--positions", default="home", help="home, compact or both")
    parser.add_argument("--name", default="accuracy", help="of the files that are written")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--split", default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("out/accuracy"), help="raw answers")
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    args = parser.parse_args(argv)
    methods = list_methods() if args.methods == "all" else split_list(args.methods)
    budgets = [parse_budget(text) for text in split_list(args.budgets)]
    places = split_list(args.positions)
    arms = [DENSE, *(Arm(m, b, p) for b in budgets for m in methods for p in places)]
    model, processor = vlm.load(args.model)
    answerer = ModelAnswerer(model, processor, args.model)
    benchmark = Embedded(args.split, args.scenes, args.clips)
    samples, results, records = answers(benchmark, answerer, arms, args)
    blind = answers(replace(benchmark, blind=True), answerer, [DENSE], args)[1][0]
    kinds = sorted({s.groups["category"] for s in samples})
    chance = {k: benchmark.chance([s for s in samples if s.groups["category"] == k]) for k in kinds}
    chance["all"] = benchmark.chance(samples)
    unseen = {k: blind.by["category"][k].mean for k in kinds} | {"all": blind.accuracy.mean}
    text = table(results)
    if "foveate" in methods and len(methods) > 1:
        text += "\n\n" + duels(benchmark, samples, records, results)
    for name, found in (("chance", chance), ("blind", unseen)):
        text += f"\n{name}: " + ", ".join(f"{k} {value:.1%}" for k, value in found.items())
    print(text)
    args.output.mkdir(parents=True, exist_ok=True)
    facts = {
        "command": shlex.join(["python", "-m", "scripts.accuracy", *(argv or sys.argv[1:])]),
        "questions": len(samples),
        "seed": args.seed,
        "versions": versions(),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "gpu": None},
        "chance": chance,
        "blind": unseen,
        "results": [asdict(result) for result in results],
    }
    (args.output / f"{args.name}.json").write_text(json.dumps(facts, indent=1, default=repr) + "\n")
    (args.output / f"{args.name}.md").write_text(f"```\n{text}\n```\n")
    picture = args.output / f"{args.name}.png"
    if len(methods) > len(COLOURS) - 1:
        rank(results, picture)
    else:
        draw(results, chance, unseen, picture)
    return 0


def answers(
    benchmark: Embedded, answerer: ModelAnswerer, arms: list[Arm], args: argparse.Namespace
) -> tuple[list[Sample], list[Result], dict[Arm, Any]]:
    """The questions, what each arm made of them, and each arm's raw answers."""
    samples = benchmark.load().samples
    sizes = {"batch_size": 20, "seed": args.seed}
    folder = open_run(args.work, benchmark, samples, answerer, **sizes)
    run(folder, samples, answerer, arms, **sizes)
    records = {arm: read_records(folder / arm.folder) for arm in arms}
    return samples, summarise(benchmark, samples, records), records


def reached(result: Result, dense: Result) -> bool:
    """Whether the measured share of the tokens is within 5% of the budget."""
    share = result.figures["tokens"] / dense.figures["tokens"]
    return abs(share / float(result.title.split()[1]) - 1) < 0.05


def duels(
    benchmark: Embedded, samples: list[Sample], records: dict[Arm, Any], results: list[Result]
) -> str:
    """Foveate against every other method that reached the same budget, paired by question."""
    by_title = {result.title: result for result in results}
    lines = ["foveate against     budget  won  lost  difference  p (paired, clustered by scene)"]
    for arm, rows in records.items():
        mine = Arm("foveate", arm.budget)
        if arm.method in (None, "foveate") or mine not in records:
            continue
        if not reached(by_title[arm.title], results[0]):
            continue
        a, b = (benchmark.units(score_all(benchmark, samples, r)) for r in (rows, records[mine]))
        found = paired([u.value for u in a], [u.value for u in b], [u.cluster for u in a])
        line = f"{arm.method!s:<20}{arm.budget:>6.3f}{found.gained:>5}{found.lost:>6}"
        lines.append(f"{line}{100 * found.difference:>+10.1f}  {found.p:.2g}")
    return "\n".join(lines)


def draw(
    results: list[Result], chance: dict[str, float], blind: dict[str, float], path: Path
) -> None:
    """Accuracy by category, one group of bars a category, with 95% intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [*sorted(results[0].by["category"]), "all"]
    figure, axes = pyplot.subplots(figsize=(10, 4.2), constrained_layout=True)
    hues = dict(zip(sorted({r.title.split()[0] for r in results}), COLOURS, strict=False))
    first, width = results[1].title.split()[1:], 0.84 / len(results)
    for number, result in enumerate(results):
        method, *budget = result.title.split()
        intervals: list[Any] = [result.by["category"].get(n, result.accuracy) for n in names]
        axes.bar(
            [k + (number - (len(results) - 1) / 2) * width for k in range(len(names))],
            [100 * i.mean for i in intervals],
            width,
            yerr=[
                [100 * (i.mean - i.low) for i in intervals],
                [100 * (i.high - i.mean) for i in intervals],
            ],
            label=result.title,
            color=hues[method],
            alpha=1.0 if budget in ([], first) else 0.5,
            ecolor="#777777",
            capsize=2,
        )
    for title, known, style in (("chance", chance, ":"), ("blind", blind, "-")):
        for k, name in enumerate(names):
            label = title if k == 0 else "_"
            axes.hlines(
                100 * known[name], k - 0.42, k + 0.42, color="black", linestyle=style, label=label
            )
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("right answers, %")
    axes.set_title(
        "Dense (144 tokens a picture or frame) and reduced, smaller budgets paler; 95% intervals"
    )
    axes.set_ylim(0, 100)
    axes.legend(ncols=5, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def rank(results: list[Result], path: Path) -> None:
    """All methods in the order of their accuracy at the smallest budget, a dot a budget."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found: dict[str, dict[str, Any]] = {}
    for result in results[1:]:
        method, budget = result.title.split()
        shown = result.accuracy if reached(result, results[0]) else None
        found.setdefault(method, {})[budget] = shown
    budgets = list(dict.fromkeys(result.title.split()[1] for result in results[1:]))
    # What cannot reach the smaller budgets (one full layer costs more) comes last.
    order = sorted(found, key=lambda n: [i.mean if i else 0 for i in found[n].values()][::-1])
    figure, axes = pyplot.subplots(figsize=(8, 0.28 * len(order) + 1.4), constrained_layout=True)
    for number, budget in enumerate(budgets):
        places = [k for k, name in enumerate(order) if found[name][budget]]
        every = [found[order[k]][budget] for k in places]
        means = [100 * i.mean for i in every]
        errors = [[100 * (i.mean - i.low) for i in every], [100 * (i.high - i.mean) for i in every]]
        axes.errorbar(
            means, places, xerr=errors, fmt="osD^"[number % 4], markersize=5,
            color=COLOURS[1 + number], ecolor="#bbbbbb", label=f"{float(budget):.1%} of the tokens",
        )  # fmt: skip
    dense: Any = results[0].accuracy
    axes.axvline(100 * dense.mean, color="black", linestyle=":", label="dense")
    axes.set_yticks(range(len(order)), order)
    axes.set_xlabel("right answers, % (95% intervals)")
    axes.legend(frameon=False, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
