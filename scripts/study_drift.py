"""What moving cached keys costs in precision: `python -m scripts.study_drift`.

A stream of random keys runs through a bounded cache: at each step one frame comes, one of the older
frames leaves at random, and the position policy moves what is held, as `compress.watch` does. After
some evictions the keys in the cache are compared with the same keys rotated once, in float32, to
the same positions: the largest difference of an entry, and the mean difference of a score (query
times key over the square root of the width, both standard normal).

Writes `drift.json`, `drift.md` and `drift.png`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from positions import ChannelTable, Held, StreamPositions, compact, rerotate
from positions.policies import Eager, Lazy, Unrotated
from scripts.common import COLOURS, RESULTS, canvas, facts, write_json, write_table

WIDTH, BASE = 64, 1e6
MILESTONES = (1, 10, 100, 1000, 3000, 10_000)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ROTARIES = {
    "one axis": ChannelTable.flat(WIDTH // 2),
    "M-RoPE, half of the head": ChannelTable.interleaved([6, 5, 5]),
}
POLICIES: dict[str, StreamPositions] = {
    "eager": Eager(),
    "eager, 64 at a time": Eager(every=64),
    "lazy at 4096": Lazy(limit=4096),
    "unrotated": Unrotated(),
}


@dataclass
class Run:
    """A cache of random keys. raw: (1, 1, S, D) float64. keys: the same as cached, in each dtype.
    hops: (S,) how often each was moved."""

    policy: StreamPositions
    channels: ChannelTable
    held: Held
    raw: Tensor
    keys: dict[str, Tensor]
    hops: Tensor
    seen: int = 0

    @classmethod
    def new(cls, policy: StreamPositions, channels: ChannelTable) -> Run:
        """An empty cache."""
        none = torch.zeros(0, 3, dtype=torch.float64)
        one_axis = channels.axes == 1
        step = torch.zeros(0, dtype=torch.int64)
        held = Held(step, none, none, none[:, 0], not one_axis, one_axis)
        raw = torch.zeros(1, 1, 0, WIDTH, dtype=torch.float64)
        keys = {name: raw.to(dtype) for name, dtype in DTYPES.items()}
        return cls(policy, channels, held, raw, keys, step)

    @property
    def inv_freq(self) -> Tensor:
        count = len(self.channels.axis)
        return BASE ** -(torch.arange(count, dtype=torch.float64) / count)

    def turn(self, keys: Tensor, old: Tensor, new: Tensor) -> Tensor:
        """Keys moved from old to new positions (S, 3)."""
        return rerotate(keys, old[:, None], new[:, None], self.inv_freq, self.channels)

    def push(self, cells: int, draw: torch.Generator) -> None:
        """Add a frame of `cells` tokens."""
        raw = torch.randn(1, 1, cells, WIDTH, generator=draw, dtype=torch.float64)
        home = torch.zeros(cells, 3, dtype=torch.float64)
        if self.held.one_axis:
            home += (self.seen * cells + torch.arange(cells, dtype=torch.float64))[:, None]
        else:
            home[:, 0], home[:, 2] = self.seen, torch.arange(cells, dtype=torch.float64)
        steps = torch.full((cells,), self.seen)
        advance = torch.full((cells,), float(self.seen > 0), dtype=torch.float64)
        now = home - self.held.shift
        axes = self.held.time_axis, self.held.one_axis
        self.held = self.held.then(Held(steps, home, now, advance, *axes))
        for name, dtype in DTYPES.items():
            rotated = self.turn(raw.to(dtype), torch.zeros_like(now), now)
            if self.policy.raw:  # cached as a forward brings it: rotated, then turned back
                rotated = self.turn(rotated, now, torch.zeros_like(now))
            self.keys[name] = torch.cat([self.keys[name], rotated], 2)
        self.raw = torch.cat([self.raw, raw], 2)
        self.hops = torch.cat([self.hops, torch.zeros(cells, dtype=torch.int64)])
        self.seen += 1

    def evict(self, index: Tensor) -> None:
        """Keep the tokens at `index`, and move them."""
        self.held = self.held.gather(index)
        self.raw = self.raw[:, :, index]
        self.keys = {name: keys[:, :, index] for name, keys in self.keys.items()}
        self.hops = self.hops[index]
        ahead = float(self.held.now.amax()) + 1
        if self.policy.raw:
            self.held = self.held.moved(compact(self.held))
            return
        moved = self.policy.after_eviction([self.held], ahead, 1 << 20)
        if moved is not None:
            self.keys = {
                name: self.turn(keys, self.held.now, moved[0]) for name, keys in self.keys.items()
            }
            self.hops += (self.held.now != moved[0]).any(1)
            self.held = self.held.moved(moved[0])

    def errors(self, dtype: str, draw: torch.Generator) -> dict[str, float]:
        """How far the keys of a dtype are from those rotated once."""
        zero = torch.zeros_like(self.held.now)
        keys = self.keys[dtype]
        if self.policy.raw:
            keys = self.turn(keys, zero, self.held.now)
        wrong = keys.double() - self.turn(self.raw, zero, self.held.now)
        query = torch.randn(256, WIDTH, generator=draw, dtype=torch.float64)
        return {
            "largest": float(wrong.abs().max()),
            "score": float((query @ wrong[0, 0].T).abs().mean() / WIDTH**0.5),
            "hops": int(self.hops.max()),
            "position": float(self.held.now.amax()),
        }


def drift(run: Run, evictions: int, steps: int, cells: int) -> dict[str, list[dict[str, float]]]:
    """Errors at the milestones, by dtype. steps: frames that are held; cells: tokens of each."""
    draw = torch.Generator().manual_seed(0)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in DTYPES}
    for _ in range(steps):
        run.push(cells, draw)
    for number in range(1, evictions + 1):
        run.push(cells, draw)
        frames = run.held.step.unique()
        gone = frames[torch.randint(len(frames) - 4, (), generator=draw)]
        run.evict((run.held.step != gone).nonzero().flatten())
        if number in MILESTONES:
            for name, errors in found.items():
                errors.append({"evictions": number, **run.errors(name, draw)})
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.study_drift", description=__doc__)
    parser.add_argument("--evictions", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=64, help="frames that are held")
    parser.add_argument("--cells", type=int, default=4, help="tokens of a frame")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    rows = []
    for rotary, channels in ROTARIES.items():
        for name, policy in POLICIES.items():
            run = Run.new(policy, channels)
            for dtype, found in drift(run, args.evictions, args.steps, args.cells).items():
                rows.append({"rotary": rotary, "dtype": dtype, "policy": name, "errors": found})
            print(rotary, name, "done", flush=True)
    sizes = {"steps": args.steps, "cells": args.cells, "width": WIDTH, "base": BASE, "seed": 0}
    report = facts("study_drift", argv, **sizes, rows=rows)
    render(write_json(args.output / "drift.json", report), args.output / "drift")
    return 0


def render(found: dict[str, Any], path: Path) -> None:
    """The error of a score after the last milestone as a table, all milestones as a picture."""
    head = f"{'':<26}{'':<10}{'':<22}{'score':>10}{'largest':>10}{'moves':>7}{'ends at':>9}"
    lines = [head]
    for row in found["rows"]:
        last = row["errors"][-1]
        line = f"{row['rotary']:<26}{row['dtype']:<10}{row['policy']:<22}{last['score']:>10.2g}"
        lines.append(f"{line}{last['largest']:>10.2g}{last['hops']:>7}{last['position']:>9.0f}")
    write_table(path, "\n".join(lines))
    figure, axes = canvas(8, 4.5)
    shown = [row for row in found["rows"] if row["rotary"] == "one axis"]
    for number, row in enumerate(shown):
        points = [(part["evictions"], part["score"]) for part in row["errors"]]
        axes.plot(
            *zip(*points, strict=True),
            label=f"{row['policy']}, {row['dtype']}",
            color=COLOURS[number % len(POLICIES)],
            linestyle="-" if row["dtype"] == "bfloat16" else "--",
        )
    axes.set(xscale="log", yscale="log", xlabel="evictions", ylabel="mean error of a score")
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    sys.exit(main())
