"""Time of each method's reduction before the language model, beside a straightforward version.

    python -m scripts.bench_ops --out out/bench_ops           # writes out/bench_ops.json and .png
    python -m scripts.bench_ops --tokens 576 --batches 1,8 --device cuda --clip

Straightforward versions do what public code does: they build full N x N tables and loop in Python
over the selected tokens (or steps), one input at a time. CDPruner alone takes a batch, as its code
does. Methods whose public code is already one pass have no such version. A run that would need more
than `--limit` seconds (estimated from the same method with fewer tokens) or more than `--memory`
GiB for its table is skipped, and the output says so.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.methods import METHODS, get_method
from compress.reduce import reduce
from compress.tokens import VisualTokens

GRIDS = {576: (1, 24, 24), 2880: (5, 24, 24), 6272: (32, 14, 14), 100000: (500, 10, 20)}
KEEP = 9  # one token in nine is kept: 64 of 576


def plain_divprune(x: Tensor, keep: int, **unused: object) -> Tensor:
    """Recompute the minimum over all selected tokens at every step."""
    unit = torch.nn.functional.normalize(x.float(), dim=1)
    far = 1 - unit @ unit.T
    picked = torch.empty(keep, dtype=torch.int64, device=x.device)
    for i in range(keep):
        if i == 0:
            score = far.topk(2, dim=0, largest=False).values[1]
        else:
            score = far[picked[:i]].min(0).values
        picked[i] = score.argmax()
    return x[picked.sort().values]


def plain_cdpruner(x: Tensor, keep: int, query: Tensor, **unused: object) -> Tensor:
    """Greedy determinant, computing a kernel row of all channels at every step; takes a batch."""
    unit = torch.nn.functional.normalize(x.float(), dim=2)
    text = torch.nn.functional.normalize(query.float(), dim=2)
    q = (unit @ text.mT).mean(2)
    low, high = q.amin(1, keepdim=True), q.amax(1, keepdim=True)
    q = (q - low) / (high - low) + 1e-6
    kernel = q[:, :, None] * (unit @ unit.mT) * q[:, None]
    left = kernel.diagonal(dim1=1, dim2=2).clone()
    basis = kernel.new_zeros(keep, *left.shape)
    picked = torch.empty(keep, len(x), dtype=torch.int64, device=x.device)
    each = torch.arange(len(x), device=x.device)
    for i in range(keep):
        j = picked[i] = left.argmax(1)
        known = torch.einsum("tb,tbn->bn", basis[:i, each, j], basis[:i])
        row = (kernel[each, j] - known) / left[each, j].sqrt()[:, None]
        basis[i], left = row, left - row**2
        left[each, j] = -torch.inf
    return x[each[:, None], picked.T.sort().values]


def plain_mmtok(x: Tensor, keep: int, query: Tensor, **unused: object) -> Tensor:
    """Recompute all gains at every step."""
    unit = torch.nn.functional.normalize(x.float(), dim=1)
    text = torch.nn.functional.normalize(query.float(), dim=1)
    needs = (text @ unit.T / 0.02).softmax(1) / len(text)
    table = torch.cat([needs, 0.5 * (unit @ unit.T / 0.2).softmax(1) / len(x)])
    best = table.new_zeros(len(table))
    picked: list[int] = []
    for _ in range(keep):
        gain = (table - best[:, None]).relu().sum(0)
        if picked:
            gain[picked] = -1
        j = int(gain.argmax())
        picked.append(j)
        best = torch.maximum(best, table[:, j])
    return x[sorted(picked)]


def plain_vispruner(x: Tensor, keep: int, saliency: Tensor, **unused: object) -> Tensor:
    """Recompute the similarities of the remaining tokens for every eight of them."""
    ranked = saliency.argsort(descending=True)
    salient, rest = ranked[: keep // 2], ranked[keep // 2 :]
    while len(rest) > keep - keep // 2:
        unit = torch.nn.functional.normalize(x[rest].float(), dim=1)
        near = (unit[::2] @ unit[1::2].T).max(1).values
        gone = min(8, len(rest) - (keep - keep // 2))
        rest = torch.cat([rest[::2][near.argsort(descending=True)[gone:]], rest[1::2]])
    return x[torch.cat([salient, rest]).sort().values]


def plain_cascade(x: Tensor, keep: int, **unused: object) -> Tensor:
    """DPC-KNN over all tokens at once."""
    far = torch.cdist(x.float(), x.float()) / x.shape[1] ** 0.5
    density = (-(far.topk(5, largest=False).values ** 2).mean(1)).exp()
    density = density + torch.rand_like(density) * 1e-6
    denser = density[None] > density[:, None]
    delta = torch.where(denser, far, far.max()).min(1).values
    centres = (delta * density).topk(keep).indices
    assign = far[:, centres].argmin(1)
    assign[centres] = torch.arange(keep, device=x.device)
    total = x.new_zeros(keep, x.shape[1]).index_add_(0, assign, x)
    return total / assign.bincount(minlength=keep)[:, None]


PLAIN: dict[str, Callable[..., Tensor]] = {
    name.removeprefix("plain_"): function
    for name, function in list(globals().items())
    if name.startswith("plain_")
}
TOGETHER = {"cdpruner"}  # public code that takes a batch


def seconds(
    run: Callable[[], object], device: torch.device, repeat: int, processor: bool = False
) -> float:
    """Median seconds of `repeat` runs. If there is more than one, a run before them warms up.

    processor: measure the processor time of this process, not wall clock time.
    """
    clock = time.process_time if processor else time.perf_counter

    def once() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = clock()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    if repeat > 1:
        once()
    return statistics.median(once() for _ in range(repeat))


def draw(count: int, batch: int, dim: int, device: torch.device, seed: int) -> VisualTokens:
    g = torch.Generator().manual_seed(seed)
    shapes = {
        "features": (batch, count, dim),
        "keys": (batch, count, 64),
        "text_query": (batch, 16, dim),
    }
    parts = {k: torch.randn(*shape, generator=g).to(device) for k, shape in shapes.items()}
    saliency = torch.rand(batch, count, generator=g).to(device)
    return VisualTokens(grid=GRIDS[count], saliency=saliency, **parts)


def runners(tokens: VisualTokens, keep: int) -> dict[str, Callable[[str], object]]:
    """Functions that run a method by name: the one of this package and the straightforward one."""
    fields = {k: v for k, v in vars(tokens).items() if v is not None and k != "features"}
    query, saliency = tokens.need("text_query"), tokens.need("saliency")

    def ours(name: str) -> object:
        return reduce(tokens.features, name, keep, **fields)

    def plain(name: str) -> object:
        if name in TOGETHER:
            return PLAIN[name](tokens.features, keep, query=query)
        samples = zip(tokens.features, query, saliency, strict=True)
        return [PLAIN[name](x, keep, query=q, saliency=s) for x, q, s in samples]

    return {"ours": ours, "plain": plain}


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each batch, size and method: milliseconds, or why the run was skipped."""
    device = torch.device(args.device)
    out: list[dict[str, Any]] = []
    for batch in args.batches:
        last: dict[tuple[str, str], tuple[int, float]] = {}  # tokens and seconds of the last size
        for count in args.counts:
            tokens, keep = draw(count, batch, args.dim, device, args.seed), count // KEEP
            for name in args.methods:
                row: dict[str, Any] = {"method": name, "cells": count, "batch": batch, "keep": keep}
                for kind, run in runners(tokens, keep).items():
                    table = 4 * count**2 / 2**30
                    if kind == "plain" and (name not in PLAIN or table > args.memory):
                        if name in PLAIN:
                            row["plain_skipped"] = f"a table of {table:.1f} GiB"
                        continue
                    before, took = last.get((kind, name), (count, 0.0))
                    # ours cuts long inputs into windows; plain versions grow with N^2 at least
                    expected = took * (count / before) ** (1 if kind == "ours" else 2)
                    if expected > args.limit:
                        row[f"{kind}_skipped"] = f"expected {expected:.0f} s or more"
                        continue
                    repeat = 1 if expected > args.limit / 10 else args.repeat
                    if device.type == "cuda":
                        torch.cuda.reset_peak_memory_stats()
                    spent = seconds(partial(run, name), device, repeat, args.processor_time)
                    last[kind, name] = (count, spent)
                    row[f"{kind}_ms"] = round(1e3 * spent, 3)
                    if device.type == "cuda":
                        row[f"{kind}_mib"] = torch.cuda.max_memory_allocated() // 2**20
                if "plain_ms" in row and "ours_ms" in row:
                    row["times_faster"] = round(row["plain_ms"] / row["ours_ms"], 1)
                print(json.dumps(row), flush=True)
                out.append(row)
    return out


def clip_ms(device: torch.device, repeat: int, processor: bool) -> float:
    """Forward of a CLIP-L/14-336 vision encoder (random weights, float32, batch 1), in ms."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        image_size=336, patch_size=14,
    )  # fmt: skip
    with torch.no_grad(), torch.device(device):
        encoder, pixels = CLIPVisionModel(config).eval(), torch.zeros(1, 3, 336, 336)
        return round(1e3 * seconds(partial(encoder, pixels), device, repeat, processor), 3)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    batches = sorted({row["batch"] for row in rows})
    figure, axes = plt.subplots(1, len(batches), figsize=(7 * len(batches), 6), squeeze=False)
    for axis, batch in zip(axes[0], batches, strict=True):
        for i, name in enumerate(sorted({row["method"] for row in rows})):
            for kind, style in (("ours", "-o"), ("plain", ":x")):
                own = [r for r in rows if r["method"] == name and r["batch"] == batch]
                points = [(r["cells"], r[f"{kind}_ms"]) for r in own if f"{kind}_ms" in r]
                if points:
                    label = name if kind == "ours" else None
                    axis.plot(*zip(*points, strict=True), style, color=f"C{i % 10}", label=label,
                              markersize=4, alpha=1 if i < 10 else 0.5)  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="ms", title=f"batch {batch}")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7, ncol=2, title="dotted: straightforward")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    before = [name for name in METHODS if not get_method(name).in_llm_only]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument(
        "--tokens", dest="counts", type=numbers, default=list(GRIDS), help=f"of {list(GRIDS)}"
    )
    parser.add_argument("--batches", type=numbers, default=[1, 8])
    parser.add_argument("--methods", type=lambda text: text.split(","), default=before)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds a run may be expected")
    parser.add_argument("--memory", type=float, default=8.0, help="GiB for a full table")
    parser.add_argument("--clip", action="store_true", help="time a CLIP-L/14-336 forward too")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="one thread, counting its processor time: for a machine that is busy otherwise",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/bench_ops"))
    args = parser.parse_args()
    unknown = [count for count in args.counts if count not in GRIDS]
    if unknown:
        parser.error(f"--tokens {unknown} not among {list(GRIDS)}")
    device = torch.device(args.device)
    if args.processor_time:
        torch.set_num_threads(1)
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    rows = compare(args)
    report: dict[str, Any] = {
        "command": " ".join(["python -m scripts.bench_ops", *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "hardware": {"device": name or platform.machine(), "threads": torch.get_num_threads()},
        "clock": "processor time" if args.processor_time else "wall",
        "seed": args.seed,
        "dim": args.dim,
        "rows": rows,
    }
    if args.clip:
        report["clip_l_14_336_ms"] = clip_ms(device, args.repeat, args.processor_time)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    plot(rows, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
