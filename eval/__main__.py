"""`python -m eval <benchmark> ...`: from a benchmark's file to a table."""

from __future__ import annotations

import argparse
import sys
from fractions import Fraction
from pathlib import Path

from eval.answerers import DENSE, Arm, ModelAnswerer
from eval.benchmarks.embedded import Embedded, write
from eval.records import read_records
from eval.report import table
from eval.runner import Shard, complete, open_run, run
from eval.summary import summarise
from vlm.scenes import SPLITS


def budget(text: str) -> int | float:
    """An int is a count; "0.25", "1/9" and "11%" are fractions of the dense count."""
    if text.isdecimal():
        return int(text)
    if text.endswith("%"):
        return float(text[:-1]) / 100
    return float(Fraction(text))


def _list(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m eval", description=__doc__)
    commands = parser.add_subparsers(dest="benchmark", required=True)
    embedded = commands.add_parser("embedded", help="scenes that are drawn, open answers")
    embedded.add_argument("--split", choices=SPLITS, default="test")
    embedded.add_argument("--scenes", type=int, default=200)
    embedded.add_argument("--data", type=Path, help="open.jsonl that make-embedded wrote")
    embedded.add_argument("--model", default="mini")
    embedded.add_argument("--methods", "--method", type=_list, default=[])
    embedded.add_argument("--budgets", "--budget", type=_list, default=[])
    embedded.add_argument("--batch-size", type=int, default=20)
    embedded.add_argument("--seed", type=int, default=0)
    embedded.add_argument("--output", type=Path, default=Path("out/eval"))
    make = commands.add_parser("make-embedded", help="write the embedded benchmark as files")
    make.add_argument("--split", choices=SPLITS, default="test")
    make.add_argument("--scenes", type=int, default=200)
    make.add_argument("--output", type=Path, required=True)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    args = _parser().parse_args(argv)
    if args.benchmark == "make-embedded":
        for path in write(args.output, args.split, args.scenes):
            print(path)
        return 0
    import vlm

    benchmark = Embedded(args.split, args.scenes, args.data)
    samples = benchmark.load().samples
    arms = [DENSE, *(Arm(m, budget(b)) for m in args.methods for b in args.budgets)]
    model, processor = vlm.load(args.model)
    answerer = ModelAnswerer(model, processor, args.model)
    sizes = {"batch_size": args.batch_size, "seed": args.seed}
    folder = open_run(args.output, benchmark, samples, answerer, **sizes)
    run(folder, samples, answerer, arms, shard=Shard.from_launcher(), **sizes)
    if all(complete(folder, samples, arm) for arm in arms):
        results = summarise(benchmark, samples, {a: read_records(folder / a.folder) for a in arms})
        text = f"{table(results)}\nchance {benchmark.chance(samples):.1%}"
        (folder / "table.txt").write_text(text + "\n", encoding="utf-8")
        print(f"{text}\n{folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
