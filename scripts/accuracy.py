"""Accuracy of the embedded model, dense and reduced: `python -m scripts.accuracy`.

Asks the questions of a split of the embedded benchmark with every method and budget. Accuracies
have 95% intervals and paired tests against dense, clustered by scene. `--methods all` runs every
method of the package and compares each with `foveate`. `--calibrate own,none` asks each method with
both calibrations and compares the others with the first. Writes `<name>.json` (raw figures,
versions, hardware, command), `<name>.md` and `<name>.png`. An interrupted run is resumed by the
same command.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import vlm
from compress import get_method, list_methods
from compress.parse import parse_budget, split_list
from eval.__main__ import DTYPES
from eval.answerers import ModelAnswerer
from eval.arms import DENSE, Arm
from eval.report import table
from eval.summary import Result
from scripts.common import (
    COLOURS,
    Asked,
    add_folders,
    against,
    canvas,
    facts,
    questions_for,
    result_of,
    with_holm,
    write_json,
    write_table,
)
from vlm.families import adapter_of


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.accuracy", description=__doc__)
    parser.add_argument("--scenes", type=int, default=450)
    parser.add_argument("--clips", type=int, default=250)
    parser.add_argument("--methods", default="foveate,duet,random,uniform,pool", help="or 'all'")
    parser.add_argument("--budgets", default="1/3,1/9", help="share of the tokens")
    parser.add_argument("--calibrate", default="own", help="such as own,none,size+first_layer")
    parser.add_argument("--name", default="accuracy", help="of the files that are written")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--split", default="test")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--seed", type=int, default=0)
    add_folders(parser, work="out/accuracy")
    args = parser.parse_args(argv)
    methods = split_list(args.methods)
    if args.methods == "all":  # down-sampling takes pictures alone, PixelPrune packed patches
        defaults = {name: get_method(name) for name in list_methods()}
        methods = [
            name
            for name, method in defaults.items()
            if not (method.prunes_patches or (method.resizes_input and args.clips))
        ]
    budgets = [parse_budget(text) for text in split_list(args.budgets)]
    settings = product(budgets, methods, split_list(args.calibrate))
    arms = [DENSE, *(Arm(method, budget, calibrate=terms) for budget, method, terms in settings)]
    model, processor = vlm.load(args.model, dtype=DTYPES[args.dtype])
    answerer = ModelAnswerer(model, processor, args.model)
    benchmark: Any = questions_for(args.model, args.split, args.scenes, args.clips)
    asked = Asked(benchmark, answerer, arms, args.work, args.seed)
    blind = Asked(replace(benchmark, blind=True), answerer, [DENSE], args.work, args.seed)
    (unseen,) = blind.results()
    known: Any = unseen.accuracy
    results = asked.results()
    report = facts(
        "accuracy",
        argv,
        questions=len(asked.samples),
        split=args.split,
        dtype=args.dtype,
        dense=adapter_of(model).image_tokens,
        seed=args.seed,
        chance=asked.chance(),
        blind={k: i.mean for k, i in unseen.by["category"].items()} | {"all": known.mean},
        results=[asdict(result) for result in results],
        duels=duels(asked, results) if len(methods) > 1 else [],
        calibrated=calibrated(asked, split_list(args.calibrate)),
    )
    render(write_json(args.output / f"{args.name}.json", report), args.output / args.name)
    return 0


def duels(asked: Asked, results: list[Result]) -> list[dict[str, Any]]:
    """`foveate` against every other method that reached the same budget."""
    by_title = {result.title: result for result in results}
    rows = []
    for arm in asked.records:
        foveate = Arm("foveate", arm.budget)
        if arm in (DENSE, foveate) or foveate not in asked.records:
            continue
        if reached(by_title[arm.title], results[0]):
            comparison = against(asked.units(arm), asked.units(foveate))
            rows.append({"method": arm.line, "budget": arm.budget, **comparison})
    return rows


def calibrated(asked: Asked, terms: list[str]) -> list[dict[str, Any]]:
    """Every method with the later calibrations, against itself with the first; p after Holm."""
    rows = []
    for arm in asked.records:
        plain = replace(arm, calibrate=terms[0])
        if arm != DENSE and arm != plain:
            comparison = against(asked.units(plain), asked.units(arm))
            rows.append({"method": arm.line, "budget": arm.budget, **comparison})
    return with_holm(rows)


def named(result: Result) -> tuple[str, str]:
    """The method and its calibration, and the budget, of a title such as "duet 0.33 none"."""
    method, budget, *terms = result.title.split()
    return " ".join([method, *terms]), budget


def reached(result: Result, dense: Result) -> bool:
    """Whether the measured share of the tokens is within 5% of the budget."""
    share = result.figures["tokens"] / dense.figures["tokens"]
    return abs(share / float(named(result)[1]) - 1) < 0.05


def render(found: dict[str, Any], path: Path) -> None:
    """Write the table and the picture of a report."""
    results = [result_of(row) for row in found["results"]]
    text = table(results)
    for name in ("chance", "blind"):
        text += f"\n{name}: " + ", ".join(f"{k} {value:.1%}" for k, value in found[name].items())
    if found["duels"]:
        text += "\n\nfoveate against     budget  won  lost  difference  p (paired, by scene)"
    for row in found["duels"]:
        text += f"\n{row['method']:<20}{row['budget']:>6.3f}{row['gained']:>5}{row['lost']:>6}"
        text += f"{100 * row['difference']:>+10.1f}  {row['p']:.2g}"
    if found.get("calibrated"):
        text += "\n\nagainst its own calibration  budget  won  lost  difference  p (Holm)"
    for row in found.get("calibrated", []):
        text += f"\n{row['method']:<28}{row['budget']:>7.3f}{row['gained']:>5}{row['lost']:>6}"
        text += f"{100 * row['difference']:>+10.1f}  {row['holm']:.2g}"
    write_table(path, text)
    if len({named(result)[0] for result in results[1:]}) >= len(COLOURS):
        write_table(path.with_name(f"{path.name}-short"), short(results, found["duels"]))
        rank(results, path.with_suffix(".png"))
        curves(results, path.with_name(f"{path.name}-curves.png"))
    else:
        draw(results, found, path.with_suffix(".png"))


def short(results: list[Result], duels: list[dict[str, Any]]) -> str:
    """One line a method: accuracy at each budget, and the p value of `foveate` against it."""
    dense: Any = results[0].accuracy
    beside = {(row["method"], f"{row['budget']:.4g}"): row for row in duels}
    cells_of: dict[str, dict[str, str]] = {}
    for result in results[1:]:
        method, budget = named(result)
        accuracy: Any = result.accuracy
        cell = f"{accuracy.mean:.1%}" if reached(result, results[0]) else "-"
        if (row := beside.get((method, budget))) is not None:
            sign = "<" if row["difference"] > 0 else ">"
            cell += f" {sign if row['p'] < 0.05 else '='} {row['p']:<6.2g}"
        elif cell != "-" and method == "foveate":
            cell += f" ({accuracy.mean / dense.mean:.1%})"
        cells_of.setdefault(method, {})[budget] = cell
    budgets = list(dict.fromkeys(named(result)[1] for result in results[1:]))
    width = max(14, 2 + max(map(len, cells_of)))
    lines = [f"{'dense ' + format(dense.mean, '.1%'):{width}}" + "".join(
        f"{f'{float(b):.1%} of tokens':>20}" for b in budgets
    )]  # fmt: skip
    for method, cells in sorted(cells_of.items(), key=lambda pair: pair[0] != "foveate"):
        lines.append(f"{method:{width}}" + "".join(f"{cells[b]:>20}" for b in budgets))
    return "\n".join(lines)


def draw(results: list[Result], found: dict[str, Any], path: Path) -> None:
    """Draw accuracy by category with 95% intervals, one group of bars a category."""
    names = [*sorted(results[0].by["category"]), "all"]
    figure, axes = canvas(10, 4.2)
    lines = dict.fromkeys(["dense", *(named(r)[0] for r in results[1:])])
    hues = dict(zip(lines, COLOURS, strict=False))
    first, width = named(results[1])[1], 0.84 / len(results)
    for number, result in enumerate(results):
        method, budget = ("dense", first) if not number else named(result)
        intervals: list[Any] = [result.by["category"].get(n, result.accuracy) for n in names]
        axes.bar(
            [k + (number - (len(results) - 1) / 2) * width for k in range(len(names))],
            [100 * i.mean for i in intervals],
            width,
            yerr=[
                [100 * (i.mean - i.low) for i in intervals],
                [100 * (i.high - i.mean) for i in intervals],
            ],
            label=f"{method} {float(budget):.0%}" if number else method,
            color=hues[method],
            alpha=1.0 if budget == first else 0.5,
            ecolor="#777777",
            capsize=2,
        )
    for title, style in (("chance", ":"), ("blind", "-")):
        for k, name in enumerate(names):
            axes.hlines(
                100 * found[title][name],
                k - 0.42,
                k + 0.42,
                color="black",
                linestyle=style,
                label=title if k == 0 else "_",
            )
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("right answers, %")
    axes.set_title(
        f"Dense ({found.get('dense', 144)} tokens a picture or frame) and reduced, smaller budgets "
        "paler; 95% intervals"
    )
    axes.set_ylim(0, 100)
    axes.legend(ncols=6, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    figure.savefig(path, dpi=120)


def rank(results: list[Result], path: Path) -> None:
    """Draw all methods in the order of accuracy at the smallest budget, one dot a budget."""
    accuracy_of: dict[str, dict[str, Any]] = {}
    for result in results[1:]:
        method, budget = named(result)
        shown = result.accuracy if reached(result, results[0]) else None
        accuracy_of.setdefault(method, {})[budget] = shown
    budgets = list(dict.fromkeys(named(result)[1] for result in results[1:]))
    # Methods that cannot reach the smaller budgets, as one full layer costs more, come last.
    order = sorted(
        accuracy_of, key=lambda n: [i.mean if i else 0 for i in accuracy_of[n].values()][::-1]
    )
    figure, axes = canvas(8, 0.28 * len(order) + 1.4)
    for number, budget in enumerate(budgets):
        places = [k for k, name in enumerate(order) if accuracy_of[name][budget]]
        intervals = [accuracy_of[order[k]][budget] for k in places]
        means = [100 * i.mean for i in intervals]
        errors = [
            [100 * (i.mean - i.low) for i in intervals],
            [100 * (i.high - i.mean) for i in intervals],
        ]
        axes.errorbar(
            means, places, xerr=errors, fmt="osD^"[number % 4], markersize=5,
            color=COLOURS[1 + number], ecolor="#bbbbbb", label=f"{float(budget):.1%} of the tokens",
        )  # fmt: skip
    dense: Any = results[0].accuracy
    axes.axvline(100 * dense.mean, color="black", linestyle=":", label="dense")
    axes.set_yticks(range(len(order)), order)
    axes.set_xlabel("right answers, % (95% intervals)")
    axes.legend(frameon=False, loc="lower left")
    figure.savefig(path, dpi=110)


def curves(results: list[Result], path: Path) -> None:
    """Draw accuracy against the mean tokens a layer, for the eight best at all budgets."""
    dense, *others = results
    whole: Any = dense.accuracy
    points: dict[str, list[tuple[float, float]]] = {}
    for result in others:
        if result.accuracy and reached(result, dense):
            points.setdefault(named(result)[0], []).append(
                (result.figures["tokens"], 100 * result.accuracy.mean)
            )
    shares = {float(named(result)[1]) for result in others}
    reach = [name for name, line in points.items() if len(line) == len(shares)]
    best = sorted(reach, key=lambda name: -sum(accuracy for _, accuracy in points[name]))[:8]
    hues = (*COLOURS[1:], "#999999", "#F0E442")
    figure, axes = canvas(7, 4.2)
    for name, colour, marker in zip(best, hues, "osD^vP*X", strict=False):
        line = sorted([*points[name], (dense.figures["tokens"], 100 * whole.mean)])
        axes.plot(*zip(*line, strict=True), color=colour, marker=marker, label=name)
    axes.axhline(100 * whole.mean, color="black", linestyle=":", label="dense")
    axes.set_xscale("log")
    ticks = [round(share * dense.figures["tokens"]) for share in sorted({*shares, 1.0})]
    axes.set_xticks(ticks, ticks, minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("visual tokens of a question, mean over the decoder layers")
    axes.set_ylabel("right answers, %")
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
