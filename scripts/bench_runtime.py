"""Synchronisations, copies, launches and host time of a compression, against the stock model.

    python -m scripts.bench_runtime --out docs/bench/runtime

The model is a LLaVA of 32 layers and 576 visual tokens with a width of 32, so that nearly all time
is spent on the host. The stock model and methods at a third of the tokens are measured in two ways:

    counts  host synchronisations, host-to-device copies and launches of one prefill and of one
            decoded token at several batch sizes, counted by `tests/device_counter.py` on a machine
            without a GPU
    time    host time of a decoded token at batch 1, on one thread; each round runs all methods in
            a random order, and ratios to the stock model are taken within a round
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from torch import Tensor

from compress import compress
from compress.ops import greedy
from scripts.common import COLOURS, canvas, facts, write_json, write_table
from tests.device_counter import Counts, DeviceCounter, DeviceTensor, to_device

hf: Any = transformers  # its configurations take more than their types say
DENSE = "dense"
KINDS = ("syncs", "copies", "launches")
IMAGE, WORD, FRONT, QUESTION = 5, 9, 5, 20


def build(depth: int, side: int, seed: int) -> Any:
    """A LLaVA of width 32 with `side` x `side` visual tokens an image."""
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
            image_size=14 * side, patch_size=14,
        ),
        text_config=hf.LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=depth,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
            pad_token_id=0, bos_token_id=1, eos_token_id=2,
        ),
        image_token_id=IMAGE,
        vision_feature_layer=-2,
        image_seq_length=side * side,
    )  # fmt: skip
    torch.manual_seed(seed)
    return hf.LlavaForConditionalGeneration(config).eval()


def prompt(batch: int, side: int, seed: int) -> dict[str, Tensor]:
    """Inputs of one image a row, with a few words before it and a question after it."""
    ids = torch.full((batch, FRONT + side * side + QUESTION), WORD)
    ids[:, FRONT : FRONT + side * side] = IMAGE
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randn(batch, 3, 14 * side, 14 * side, generator=draw)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def next_token(given: dict[str, Tensor], step: int, cache: Any) -> dict[str, Any]:
    """Inputs of the decode step after `step` decoded tokens."""
    rows, length = given["input_ids"].shape
    mask = torch.ones(rows, length + step + 1, dtype=torch.int64)
    ids = torch.full((rows, 1), WORD)
    return {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}


@contextmanager
def attached(model: Any, way: str, budget: float) -> Iterator[None]:
    """Compress the model with a method, or leave it as it is."""
    if way == DENSE:
        yield
        return
    with compress(model, way, budget):
        yield


class OneLaunch:
    """Replaces the Triton kernels of greedy selection, which need a GPU, by one launch each."""

    def __init__(self, counter: DeviceCounter) -> None:
        self._counter = counter

    def serve(self, table: Tensor) -> OneLaunch | None:
        """The kernels, for tables on the device of the counter."""
        return self if isinstance(table, DeviceTensor) else None

    def cover(self, table: DeviceTensor, count: int) -> Any:
        return self._once(greedy.cover, table, count)

    def volume(self, kernel: DeviceTensor, count: int) -> Any:
        return self._once(greedy.volume, kernel, count)

    def _once(self, select: Callable[[Tensor, int], Tensor], x: DeviceTensor, count: int) -> Any:
        self._counter.counts.launches["a Triton kernel"] += 1
        return to_device(select(x.host_values, count))


def counts_of(model: Any, way: str, budget: float, given: dict[str, Tensor]) -> dict[str, Any]:
    """Counts of a prefill and of a decoded token. The model must be on the counter's device."""
    counts = {}
    counter = DeviceCounter()
    kernels = mock.patch.object(greedy, "_fused", OneLaunch(counter).serve)
    with counter, kernels, torch.no_grad(), attached(model, way, budget):
        inputs = to_device(given)
        counter.take()
        cache = model(**inputs, use_cache=True).past_key_values
        counts["prefill"] = as_facts(counter.take())
        for step in range(2):  # count the second token; the first may do work once
            inputs = to_device(next_token(given, step, cache))
            counter.take()
            model(**inputs)
            counts["decode"] = as_facts(counter.take())
    return counts


def as_facts(counts: Counts) -> dict[str, Any]:
    """Totals, and the lines with most synchronisations and copies."""
    lines: dict[str, Counter[str]] = {"syncs": counts.syncs, "copies": counts.copies}
    return counts.totals() | {f"{kind}_by_line": dict(x.most_common()) for kind, x in lines.items()}


def token_seconds(
    model: Any, way: str, budget: float, given: dict[str, Tensor], tokens: int,
    clock: Callable[[], float],
) -> float:  # fmt: skip
    """Seconds of one decoded token: the mean of `tokens` after an untimed prefill."""
    with torch.no_grad(), attached(model, way, budget):
        cache = model(**given, use_cache=True).past_key_values
        model(**next_token(given, 0, cache))
        steps = [next_token(given, step, cache) for step in range(1, tokens + 1)]
        start = clock()
        for inputs in steps:
            model(**inputs)
        return (clock() - start) / tokens


def median_interval(values: Sequence[float], seed: int, draws: int = 2000) -> dict[str, float]:
    """The median and its 95% bootstrap interval."""
    draw = random.Random(seed)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(draws))
    low, high = medians[int(0.025 * draws)], medians[int(0.975 * draws) - 1]
    return {"median": statistics.median(values), "low": low, "high": high}


def host_time(
    model: Any, ways: Sequence[str], budget: float, given: dict[str, Tensor], rounds: int,
    tokens: int, seed: int, clock: Callable[[], float],
) -> dict[str, Any]:  # fmt: skip
    """Milliseconds of a decoded token with each method, and their ratio to the stock model."""
    draw, spent = random.Random(seed), {way: list[float]() for way in ways}
    for turn in range(rounds + 1):
        for way in draw.sample(list(ways), len(ways)):
            seconds = token_seconds(model, way, budget, given, tokens, clock)
            if turn:  # the first round warms up
                spent[way].append(1e3 * seconds)
    rows: dict[str, Any] = {}
    for way, times in spent.items():
        ratios = [a / b for a, b in zip(times, spent[DENSE], strict=True)]
        rows[way] = {"ms": statistics.median(times), "ratio": median_interval(ratios, seed)}
        rows[way]["each_ms"] = [round(value, 4) for value in times]
    return rows


def table(found: dict[str, Any]) -> str:
    """Counts and times as a table."""
    lines = [f"{'':10} {'batch':>5} {'phase':8}" + "".join(f"{kind:>10}" for kind in KINDS)]
    for row in found["counts"]:
        for phase in ("prefill", "decode"):
            numbers = "".join(f"{row[phase][kind]:>10,}" for kind in KINDS)
            lines.append(f"{row['way']:10} {row['batch']:>5} {phase:8}{numbers}")
    lines += ["", f"{'':10} {'ms a decoded token':>18}  over the stock model (95%)"]
    for way, row in found["time"].items():
        low, middle, high = (100 * (row["ratio"][x] - 1) for x in ("low", "median", "high"))
        over = "" if way == DENSE else f"  {middle:+.1f}% ({low:+.1f}% to {high:+.1f}%)"
        lines.append(f"{way:10} {row['ms']:>18.2f}{over}")
    return "\n".join(lines)


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw the synchronisations of each method and phase by batch size."""
    figure, axes = canvas(8, 3.6)
    bars = [(row, phase) for row in found["counts"] for phase in ("prefill", "decode")]
    for place, (row, phase) in enumerate(bars):
        colour = COLOURS[0 if row["way"] == DENSE else 1 if phase == "prefill" else 2]
        axes.barh(place, row[phase]["syncs"], color=colour)
        axes.annotate(
            f" {row[phase]['syncs']} syncs, {row[phase]['copies']} copies, "
            f"{row[phase]['launches']:,} launches",
            (row[phase]["syncs"], place),
            va="center",
            fontsize=7,
        )
    names = [f"{row['way']}, batch {row['batch']}, {phase}" for row, phase in bars]
    axes.set_yticks(range(len(bars)), names, fontsize=7)
    axes.invert_yaxis()
    axes.margins(x=0.35)
    axes.set_xlabel("host synchronisations (grey: the stock model)")
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--methods", type=lambda text: text.split(","), default=["duet", "foveate"])
    parser.add_argument("--batches", type=numbers, default=[1, 8])
    parser.add_argument("--budget", type=float, default=1 / 3)
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--side", type=int, default=24, help="visual tokens a side of the image")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=16, help="decoded tokens of a round")
    parser.add_argument("--wall", action="store_true", help="wall time, not processor time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/bench_runtime"))
    args = parser.parse_args(argv)
    if args.rounds < 2:
        parser.error("--rounds is below 2")
    torch.set_num_threads(1)
    ways = [DENSE, *args.methods]
    model = build(args.depth, args.side, args.seed)
    given = prompt(1, args.side, args.seed)
    clock = time.perf_counter if args.wall else time.process_time
    times = host_time(model, ways, args.budget, given, args.rounds, args.tokens, args.seed, clock)
    counted = to_device(model)
    counts = [
        {"way": way, "batch": batch}
        | counts_of(counted, way, args.budget, prompt(batch, args.side, args.seed))
        for batch in args.batches
        for way in ways
    ]
    settings = {name: getattr(args, name) for name in ("budget", "depth", "side", "rounds",
                                                       "tokens", "seed")}  # fmt: skip
    clock_name = "wall" if args.wall else "processor time"
    report = facts(
        "bench_runtime", argv, settings=settings, clock=clock_name, counts=counts, time=times
    )
    written = write_json(args.out.with_suffix(".json"), report)
    write_table(args.out.with_suffix(".md"), table(written))
    plot(written, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
