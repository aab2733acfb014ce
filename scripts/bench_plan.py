"""Time and memory of planning 10^4 to 10^6 visual tokens.

    python -m scripts.bench_plan --out docs/bench/plan.json

Each figure is measured on one thread in a process of its own. Peak memory is the growth of the peak
resident set while the step runs once. Time is the best processor time of the repeats that follow;
wall clock time is kept beside it, which shows whether the machine was busy. The layout repeats one
block: text, tiles with V2PE, a video with M-RoPE, a compact grid and random increments. The limits
are 0.5 s and 200 MB for 1,000,000 tokens, and growth within 10% of linear.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from positions import (
    PPE,
    V2PE,
    Compact,
    Image,
    MRoPE,
    Plan,
    PositionTable,
    Segment,
    Text,
    Video,
    plan,
)

SIZES = (10_000, 31_623, 100_000, 316_228, 1_000_000)
STEPS = ("plan", "plan v2pe", "after ppe", "table", "lookup")


def layout(tokens: int) -> list[Segment]:
    """A mixed layout of `tokens` visual tokens, and some text."""
    random = V2PE("random")
    block: list[Segment] = [
        Text(40),
        Image((16, 16), scheme=V2PE(1 / 16)),
        Text(2),
        Image((16, 16), scheme=random),
        Text(10),
        Video((8, 14, 14), times=0.5, scheme=MRoPE(tokens_per_second=2)),
        Text(1),
        Image((24, 24), scheme=Compact("row"), expert="dino"),
    ]
    size = sum(item.tokens for item in block if not isinstance(item, Text))
    segments = block * (tokens // size)
    rest = tokens % size
    return [*segments, Text(5), Image((1, rest))] if rest else segments


@dataclass
class Pairs:
    """Merge every two neighbouring tokens."""

    assign: Tensor
    anchor: Tensor


def step_of(name: str, tokens: int, seed: int) -> Callable[[], Any]:
    """The step to measure. What it needs is prepared here."""

    def draw() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    if name == "plan":
        segments = layout(tokens)
        return lambda: plan(segments, generator=draw())
    if name == "plan v2pe":
        single: list[Segment] = [Text(100), Image((1, tokens)), Text(100)]
        return lambda: plan(single, V2PE(1 / 256))
    segments = layout(tokens)
    made: Plan = plan(segments, generator=draw())
    if name == "after ppe":
        merged = {
            index: Pairs(torch.arange(item.tokens) // 2, torch.arange(0, item.tokens, 2))
            for index, item in enumerate(segments)
            if not isinstance(item, Text) and item.tokens >= 8
        }
        return lambda: made.after(merged, PPE(8))
    if name == "table":
        return lambda: PositionTable.from_plans([made])
    table = PositionTable.from_plans([made])
    index = torch.arange(min(4096, len(made)))[None] + len(made) // 2
    return lambda: table.lookup(index)


def measure(name: str, tokens: int, repeats: int, seed: int) -> dict[str, Any]:
    """Measure one step in this process, run `repeats` + 1 times."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    step_of(name, 1000, seed)()  # imports and first-call costs
    step = step_of(name, tokens, seed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept = step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    del kept
    wall, cpu = [], []
    for _ in range(repeats):
        clock, used = time.perf_counter(), time.process_time()
        step()
        cpu.append(time.process_time() - used)
        wall.append(time.perf_counter() - clock)
    return {
        "step": name,
        "tokens": tokens,
        "wall_s": wall,
        "cpu_s": cpu,
        "best_s": min(cpu),
        "best_wall_s": min(wall),
        "median_wall_s": statistics.median(wall),
        "peak_mib": peak / 1024,
    }


def slope(rows: list[dict[str, Any]]) -> float:
    """The exponent of growth: the least-squares slope of log time over log tokens."""
    x = [math.log(row["tokens"]) for row in rows]
    y = [math.log(row["best_s"]) for row in rows]
    mean_x, mean_y = statistics.mean(x), statistics.mean(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def picture(report: dict[str, Any], path: Path) -> None:
    """Draw time against tokens, both on logarithmic axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name in STEPS:
        rows = [row for row in report["rows"] if row["step"] == name]
        label = f"{name} (slope {report['slopes'][name]:.2f})"
        axes.loglog([r["tokens"] for r in rows], [r["best_s"] for r in rows], "o-", label=label)
    axes.axhline(0.5, color="0.6", linewidth=1, linestyle="--")
    axes.set_xlabel("visual tokens")
    axes.set_ylabel("processor seconds")
    axes.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=90, metadata={"Software": None})


def main() -> None:
    """Measure every step and size, each in a process of its own, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/bench/plan.json"))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", nargs=2, metavar=("STEP", "TOKENS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, tokens = options.one
        print(json.dumps(measure(name, int(tokens), options.repeats, options.seed)))
        return
    rows = []
    common = ["--repeats", str(options.repeats), "--seed", str(options.seed)]
    for name in STEPS:
        for tokens in SIZES:
            command = [sys.executable, "-m", "scripts.bench_plan", *common]
            command += ["--one", name, str(tokens)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout))
            row = rows[-1]
            print(f"{name:<10}{tokens:>10}{row['best_s']:>10.4f} s{row['median_wall_s']:>10.4f} s "
                  f"wall (median){row['peak_mib']:>9.1f} MiB", flush=True)  # fmt: skip
    slopes = {name: slope([row for row in rows if row["step"] == name]) for name in STEPS}
    report = {
        "command": " ".join(["python -m scripts.bench_plan", *sys.argv[1:]]),
        "seed": options.seed,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "hardware": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "load_average": os.getloadavg(),
        },
        "slopes": slopes,
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    picture(report, options.out.with_suffix(".png"))
    print("slopes", {name: round(value, 3) for name, value in slopes.items()})


def processor() -> str:
    """The name of the processor, if the system reports one."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
