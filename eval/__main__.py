"""Run a benchmark on a model, dense and reduced, and write tables, plots and a report.

    python -m eval mmbench --data mmbench_dev_en.tsv --model ./out --method duet --budget 64
    python -m eval videomme --data test.parquet --media ./videos --model ./out --frames 64 \\
        --methods duet,random --budgets 0.5,0.1
    python -m eval mmbench --data mmbench_dev_en.tsv --endpoint http://localhost:8000/v1
    python -m eval make-embedded --split test --scenes 200 --output ./embedded

Every configuration of a sweep answers the same questions, and so does the unreduced (dense) model.
An interrupted run continues when it is started again. It can run on several processes with
torchrun, accelerate or the DeepSpeed launcher.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import typing
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch

import vlm
from compress.parse import SCHEDULES, parse_any_budget, parse_method, split_list
from eval.answerers import DTYPES, Answerer, ModelAnswerer
from eval.arms import DENSE, Arm
from eval.benchmarks import BENCHMARKS
from eval.benchmarks.embedded import write
from eval.endpoint import Endpoint, EndpointAnswerer
from eval.records import replace
from eval.report import write_report
from eval.runner import Shard, arms_in, complete, open_run, run
from eval.samples import Benchmark, DataError, Problem, Sample, first
from vlm.embedded.scenes import SPLITS
from vlm.progress import quiet_logs

SHOWN = 10  # bad rows that are printed


def main(argv: Sequence[str] | None = None, prog: str = "python -m eval") -> int:
    """Run the command line and return the exit status: 2 for a mistake in what was given."""
    args = _parser(prog).parse_args(argv)
    quiet_logs()
    try:
        if args.benchmark == "make-embedded":
            for path in write(args.output, args.split, args.scenes, args.clips):
                print(path)
            return 0
        return _evaluate(args)
    except (DataError, ValueError, TypeError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _evaluate(args: argparse.Namespace) -> int:
    # Everything is checked before the model loads.
    arms = _arms(args)
    if args.endpoint is not None and arms != [DENSE]:
        raise ValueError(
            "--endpoint: the server reduces, so --method and --budget go to its settings"
        )
    if args.endpoint is not None and args.share_prompts:
        raise ValueError("--share-prompts: expected a model that is loaded here, not --endpoint")
    benchmark = _benchmark(args)
    loaded = benchmark.load()
    _tell(loaded.problems, args.skip_bad)
    samples = first(loaded.samples, args.limit)
    if not samples:
        raise DataError(f"{benchmark.name}: there are no questions")
    if args.one_pass:
        _check_options(args, samples)
    answerer = _answerer(args, len(arms))
    if args.endpoint is not None:
        arms = [Arm(served=args.served_as)]
    sizes = {"batch_size": 1 if args.one_pass else args.batch_size, "seed": args.seed}
    folder = open_run(args.output, benchmark, samples, answerer, **sizes)
    shard = Shard.from_launcher()
    if loaded.problems:
        text = json.dumps([vars(p) for p in loaded.problems], indent=1, ensure_ascii=False)
        replace(folder / "problems.json", text + "\n")
    run(folder, samples, answerer, arms, shard=shard, **sizes)
    if not all(complete(folder, samples, arm) for arm in arms):
        print(f"process {shard.rank} of {shard.world} is done; the last one writes the report")
        return 0
    text, paths = write_report(
        folder,
        benchmark,
        samples,
        arms_in(folder, samples),
        problems=loaded.problems,
        seed=args.seed,
    )
    print(text, *paths, sep="\n")
    return 0


def _answerer(args: argparse.Namespace, arms: int) -> Answerer:
    if args.endpoint is None:
        name = args.model or "mini"
        device = _device(args.device)
        model, processor = vlm.load(name, dtype=DTYPES[args.dtype], device=device)
        more = {"share_vision": arms > 1, "share_prompts": args.share_prompts}
        return ModelAnswerer(model, processor, name, **more, one_pass=args.one_pass)
    key = None if args.api_key_file is None else args.api_key_file.read_text().strip()
    return EndpointAnswerer(
        Endpoint(
            args.endpoint,
            args.model,
            concurrency=args.batch_size,
            retries=args.retries,
            image_folder=args.image_folder,
            extra=args.extra,
            key=key,
        )
    )


def _arms(args: argparse.Namespace) -> list[Arm]:
    methods = [parse_method(m) for text in args.methods for m in split_list(text)]
    budgets = [parse_any_budget(b) for text in args.budgets for b in split_list(text)]
    if bool(methods) != bool(budgets):
        raise ValueError("--method and --budget go together: give both, or neither for dense alone")
    named = ("positions", "schedule", "calibrate", "keep_phase")
    more = {name: getattr(args, name) for name in named}
    reduced = [Arm(m, b, **more) for m in methods for b in budgets]
    return list(dict.fromkeys(([] if args.no_dense and reduced else [DENSE]) + reduced))


def _check_options(args: argparse.Namespace, samples: Sequence[Sample]) -> None:
    if args.endpoint is not None:
        raise ValueError(
            "--one-pass: a served model tells no likelihoods; expected one loaded here"
        )
    if args.share_prompts:
        raise ValueError("--one-pass with --share-prompts: expected one of them")
    count = sum(not sample.options for sample in samples)
    if count:
        raise ValueError(
            f"--one-pass: {count} of {len(samples)} questions of {args.benchmark} have no options, "
            "so their answers are generated; expected a benchmark of lettered options, such as "
            "mmbench, scienceqa or videomme"
        )


def _tell(problems: Sequence[Problem], skip: bool) -> None:
    if not problems:
        return
    print(f"{len(problems)} rows cannot be used:", file=sys.stderr)
    for problem in problems[:SHOWN]:
        print(f"  {problem.row}: {problem.what}", file=sys.stderr)
    if len(problems) > SHOWN:
        print(f"  ... and {len(problems) - SHOWN} more", file=sys.stderr)
    if not skip:
        raise DataError("correct these rows, or leave them out with --skip-bad")


def _device(name: str | None) -> torch.device:
    gpus = torch.cuda.device_count()
    if name is None:
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if gpus else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"--device: {name!r} is no device: expected cpu, cuda or cuda:N"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise ValueError(f"--device: there is no {name}; this machine has {gpus} GPUs")
    return device


# ------------------------------------------------------------------ options


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # The DeepSpeed launcher passes it first; the environment says the same.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="benchmark")
    for name, kind in BENCHMARKS.items():
        command = commands.add_parser(
            name,
            help=kind.help,
            description=sys.modules[kind.__module__].__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _add_fields(command.add_argument_group("the benchmark", kind.__doc__), kind)
        _add_common(command)
    make = commands.add_parser("make-embedded", help="write the embedded benchmark as files")
    make.add_argument("--split", choices=SPLITS, default="test")
    make.add_argument("--scenes", type=_count, default=200)
    make.add_argument("--clips", type=_count, default=100)
    make.add_argument("--output", type=Path, required=True)
    return parser


def _add_fields(group: Any, kind: type[Benchmark]) -> None:
    """Add an option for each field of a benchmark, with the field's type and default."""
    hints = typing.get_type_hints(kind)
    for item in fields(kind):
        option, hint = f"--{item.name.replace('_', '-')}", hints[item.name]
        if item.name == "judge":
            group.add_argument(option, type=_function, metavar="MODULE:FUNCTION")
        elif hint is bool:
            group.add_argument(option, action=argparse.BooleanOptionalAction, default=item.default)
        else:
            kinds = [k for k in typing.get_args(hint) if k is not type(None)] or [hint]
            convert = kinds[0] if kinds[0] in (int, float, Path) else str
            if item.default is MISSING:
                group.add_argument(option, type=convert, required=True)
            else:
                group.add_argument(option, type=convert, default=item.default)


def _add_common(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("the model and its reduction")
    add = group.add_argument
    add("--model", help="'mini', a folder, or a hub name (default: mini, or what is served)")
    add("--methods", "--method", action="append", default=[], help="duet,random,duet(query='all')")
    add(
        "--budgets",
        "--budget",
        action="append",
        default=[],
        help="64,1/9,25%%,coverage:0.95,shared:64",
    )
    add(
        "--positions",
        default="original",
        help="original, median, compact, or a scheme, such as v2pe:1/4",
    )
    add("--schedule", choices=SCHEDULES, default="own", help="in-LLM pruning schedule")
    add("--calibrate", default="own", help="own, none, or size+first_layer+distance")
    add("--keep-phase", type=float, default=0.0, help="share kept for its positions, such as 0.05")
    add("--no-dense", action="store_true", help="leave out the unreduced model")
    add(
        "--share-prompts",
        action="store_true",
        help="without reduction, read the media of neighbouring questions once",
    )
    add("--dtype", choices=DTYPES, default="float32")
    add("--device", help="default: the GPU if there is one")
    group = command.add_argument_group("a served model, instead of one loaded here")
    add = group.add_argument
    add("--endpoint", metavar="URL", help="of an OpenAI API, such as http://localhost:8000/v1")
    add("--served-as", default="served", help="the table's name for it, such as 'duet, keep 64'")
    add("--extra", type=_object, default={}, metavar="JSON", help="further fields of each request")
    add("--retries", type=int, default=6, help="tries after the first, with growing pauses")
    add("--image-folder", type=Path, help="name images in it instead of sending them")
    add("--api-key-file", type=Path, help="a file that holds the key")
    group = command.add_argument_group("the run")
    add = group.add_argument
    add("--output", type=Path, default=Path("out/eval"), help="the folder of all runs")
    add("--batch-size", type=_count, default=8, help="at an endpoint: requests at one time")
    add(
        "--one-pass",
        action="store_true",
        help="answer with the most likely option, all options in one forward, a question at a time",
    )
    add("--limit", type=_count, help="ask only the first questions, up to whole clusters")
    add("--skip-bad", action="store_true", help="leave out rows that cannot be used")
    add("--seed", type=int, default=0)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected at least 1")
    return value


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text}: expected a JSON object ({error})") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text}: expected a JSON object")
    return value


def _function(text: str) -> Any:
    module, _, name = text.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text}: expected module:function ({error})") from error


def _benchmark(args: argparse.Namespace) -> Benchmark:
    kind = BENCHMARKS[args.benchmark]
    return kind(**{item.name: getattr(args, item.name) for item in fields(kind)})


if __name__ == "__main__":
    sys.exit(main())
