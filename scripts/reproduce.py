"""Methods side by side on benchmark files: the table that papers on token reduction report.

    python -m scripts.reproduce --model llava-hf/llava-1.5-7b-hf --dtype bfloat16 \\
        --benchmark pope:data=coco,media=val2014 --benchmark gqa:data=questions.json,media=images \\
        --methods duet,foveate,downsample,random --budgets 192,128,64

Every configuration answers the same questions. For each benchmark the figure that papers report is
given (F1 for POPE, the total score for MME, else accuracy), and over all benchmarks the mean share
of dense, with a bootstrap over clusters of dependent questions that draws the same ones for dense
and reduced. Budgets are means over decoder layers; tokens that enter the language model and
multiply-adds of the prefill stand beside them.

`--dry-run` loads no weights and asks nothing. It prints tokens, multiply-adds and the hours to
expect. `--model` can then be a folder with a config.json alone, and a benchmark without `data` has
its official number of questions.

Writes `reproduce.json` (raw figures, versions, hardware, command), `reproduce.md` and
`reproduce.png`. An interrupted run is resumed by the same command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vlm
from compress.parse import parse_budget, parse_method, split_list
from eval.answerers import DTYPES, Answerer, ModelAnswerer
from eval.arms import DENSE, Arm
from eval.benchmarks import parse_benchmark
from eval.records import read_records
from eval.report import table
from eval.runner import open_run, run
from eval.samples import Benchmark, DataError, first, total
from eval.summary import score_all, summarise
from scripts.common import COLOURS, canvas, facts, result_of, write_json
from scripts.expected import expected_cost

DRAWS = 1000
Sums = Mapping[str, Mapping[str, float]]


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status: 2 for a mistake in what was given."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_options(parser)
    args = parser.parse_args(argv)
    try:
        methods = [parse_method(m) for m in split_list(args.methods)]
        budgets = [parse_budget(b) for b in split_list(args.budgets)]
        arms = [DENSE, *(Arm(method, budget) for budget in budgets for method in methods)]
        if args.dry_run:
            print(expected_cost(args, arms))
            return 0
        benchmarks = [parse_benchmark(text) for text in args.benchmark]
        _refuse_bad_rows(benchmarks, args.skip_bad)
        found = measure(args, benchmarks, arms, argv)
    except (DataError, ValueError, TypeError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    render(write_json(args.output / "reproduce.json", found), args.output / "reproduce")
    return 0


def _add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="mini", help="'mini', a folder, or a hub name")
    add(
        "--benchmark",
        action="append",
        required=True,
        metavar="NAME:KEY=VALUE,...",
        help="a benchmark with the options of `python -m eval NAME --help`",
    )
    add("--methods", default="duet,foveate,visionzip,divprune,downsample,pool,uniform,random")
    add("--budgets", default="1/3,2/9,1/9", help="mean tokens over decoder layers, or shares")
    add("--dtype", choices=DTYPES, default="float32")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--batch-size", type=int, default=8)
    add("--limit", type=int, help="ask only the first questions of each benchmark")
    add("--skip-bad", action="store_true", help="leave out rows that cannot be used")
    add("--seed", type=int, default=0)
    add("--work", type=Path, default=Path("out/reproduce"), help="raw answers")
    add("--output", type=Path, default=Path("out/reproduce"))
    group = parser.add_argument_group("a dry run")
    add = group.add_argument
    add("--dry-run", action="store_true", help="print what a run would cost")
    add("--tokens", type=int, help="visual tokens of an image, where no processor tells")
    add("--text-tokens", type=int, default=60, help="text tokens of a prompt")
    add("--answer-tokens", type=int, default=4, help="tokens of an answer")
    add("--tflops", type=float, help="of the device; measured on this one by default")
    add("--bandwidth", type=float, help="memory, GB/s; measured on this device by default")


def _refuse_bad_rows(benchmarks: Sequence[Benchmark], skip: bool) -> None:
    for benchmark in benchmarks:
        problems = benchmark.load().problems
        if problems and not skip:
            raise DataError(
                f"{benchmark.name}: {len(problems)} rows cannot be used, the first is "
                f"{problems[0].row}: {problems[0].what}; correct them, or leave them out with "
                "--skip-bad"
            )


def measure(
    args: argparse.Namespace,
    benchmarks: Sequence[Benchmark],
    arms: Sequence[Arm],
    argv: list[str] | None,
) -> dict[str, Any]:
    """Ask all questions, and return the report."""
    model, processor = vlm.load(args.model, dtype=DTYPES[args.dtype], device=args.device)
    answerer = ModelAnswerer(model, processor, str(args.model))
    asked = {b.name: ask(b, answerer, arms, args) for b in benchmarks}
    # Of nothing right there is no share.
    counted = [b for b in benchmarks if asked[b.name][0]["published"][DENSE.title] > 0]
    shares = {
        arm.title: mean_share([(b, *asked[b.name][1][arm]) for b in counted], args.seed)
        for arm in arms
        if arm is not DENSE and counted
    }
    return facts(
        "reproduce",
        argv,
        model=answerer.describe() | {"chat_template": None},
        seed=args.seed,
        benchmarks={name: rows for name, (rows, _) in asked.items()},
        counted=[b.name for b in counted],
        shares=shares,
    )


def ask(
    benchmark: Benchmark, answerer: Answerer, arms: Sequence[Arm], args: argparse.Namespace
) -> tuple[dict[str, Any], dict[Arm, tuple[Sums, Sums]]]:
    """The rows of one benchmark, and for each arm the sums by cluster of dense and of the arm."""
    samples = first(benchmark.load().samples, args.limit)
    sizes: Any = {"batch_size": args.batch_size, "seed": args.seed}
    folder = open_run(args.work, benchmark, samples, answerer, **sizes)
    run(folder, samples, answerer, arms, **sizes)
    records = {arm: read_records(folder / arm.folder) for arm in arms}
    results = {r.title: r for r in summarise(benchmark, samples, records, seed=args.seed)}
    sums = {arm: benchmark.sums(score_all(benchmark, samples, records[arm])) for arm in arms}
    rows = {
        "questions": len(samples),
        "options": benchmark.describe(),
        "published": {arm.title: float(published(benchmark, sums[arm])) for arm in arms},
        "results": [asdict(results[arm.title]) for arm in arms],
    }
    return rows, {arm: (sums[DENSE], sums[arm]) for arm in arms}


def published(benchmark: Benchmark, sums: Sums) -> Any:
    """The figure that papers report, of all clusters."""
    return benchmark.published(total(sums))


def mean_share(parts: Sequence[tuple[Benchmark, Sums, Sums]], seed: int) -> dict[str, float]:
    """The mean over benchmarks of reduced / dense, and its 95% percentile bootstrap.

    parts: of each benchmark, with the sums by cluster of dense and of the reduced model. In a draw,
    both have the same clusters.
    """
    rng = np.random.default_rng(seed)
    exact, draws = [], []
    for benchmark, dense, reduced in parts:
        exact.append(published(benchmark, reduced) / published(benchmark, dense))
        clusters = sorted(set(dense) & set(reduced))
        weights = rng.multinomial(len(clusters), [1 / len(clusters)] * len(clusters), size=DRAWS)
        with np.errstate(invalid="ignore", divide="ignore"):
            above, below = (
                benchmark.published(
                    {name: weights @ column for name, column in _columns(side, clusters).items()}
                )
                for side in (reduced, dense)
            )
            draws.append(above / below)
    low, high = np.nanpercentile(np.mean(draws, axis=0), [2.5, 97.5])
    return {"mean": float(np.mean(exact)), "low": float(low), "high": float(high)}


def _columns(sums: Sums, clusters: Sequence[str]) -> dict[str, np.ndarray]:
    names = dict.fromkeys(name for row in sums.values() for name in row)
    return {name: np.array([sums[c].get(name, 0.0) for c in clusters]) for name in names}


def render(found: dict[str, Any], path: Path) -> None:
    """Write the page and the picture of a report."""
    names, shares = list(found["benchmarks"]), found["shares"]
    figures = {
        row["title"]: row["figures"] for row in next(iter(found["benchmarks"].values()))["results"]
    }
    lines = [
        "| configuration | average | entering | GMAC | "
        + " | ".join(names)
        + " | mean share of dense | 95% interval |",
        "|---|" + "--:|" * (len(names) + 5),
    ]
    for title, own in figures.items():
        scores = [f"{found['benchmarks'][name]['published'][title]:.1f}" for name in names]
        share = shares.get(title)
        last = ["", ""]
        if share is not None:
            last = [f"{share['mean']:.1%}", f"{share['low']:.1%} .. {share['high']:.1%}"]
        tokens = [f"{own.get('tokens', 0):.1f}", f"{own.get('entering', own.get('tokens', 0)):.1f}"]
        cells = [title, *tokens, f"{own.get('macs', 0) / 1e9:.4g}", *scores, *last]
        lines.append(f"| {' | '.join(cells)} |")
    parts = [f"# {found['model']['name']}", f"    {found['command']}", "\n".join(lines)]
    for name in set(names) - set(found["counted"]):
        parts.append(f"{name} is not in the mean share: the dense model has no point there.")
    for name, rows in found["benchmarks"].items():
        results = [result_of(row) for row in rows["results"]]
        text = table(results, column=None)
        parts.append(f"## {name}: {rows['questions']} questions\n\n```\n{text}\n```")
    path.with_suffix(".md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print("\n\n".join(parts[2:]))
    if shares:
        draw(figures, shares, path.with_suffix(".png"))


def draw(figures: Mapping[str, Any], shares: Mapping[str, Any], path: Path) -> None:
    """Draw the mean share of dense against tokens, a line for each method."""
    figure, axes = canvas(8, 4.5)
    lines: dict[str, list[str]] = {}
    for title in shares:
        lines.setdefault(title.rsplit(" ", 1)[0], []).append(title)
    for number, (method, titles) in enumerate(lines.items()):
        titles.sort(key=lambda title: figures[title]["tokens"])
        means = [100 * shares[t]["mean"] for t in titles]
        below = [100 * (shares[t]["mean"] - shares[t]["low"]) for t in titles]
        above = [100 * (shares[t]["high"] - shares[t]["mean"]) for t in titles]
        axes.errorbar(
            [figures[t]["tokens"] for t in titles],
            means,
            yerr=[np.maximum(below, 0), np.maximum(above, 0)],
            marker="os^Dv<>"[number // len(COLOURS) % 7],
            color=COLOURS[number % len(COLOURS)],
            capsize=2,
            label=method,
        )
    axes.axhline(100, color="black", linestyle=":")
    axes.set_xlabel("visual tokens an image, mean over decoder layers")
    axes.set_ylabel("mean share of dense, %")
    axes.legend(frameon=False, ncols=2)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
