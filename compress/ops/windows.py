"""Long inputs in parts: a video frame by frame, or in windows of whole frames."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from compress.ops.selection import on_device, top
from compress.ops.similarity import unit, wide
from compress.tokens import Grid, Reduction, VisualTokens

WINDOW = 8192  # most tokens that a method with an N x N table is given at once

Select = Callable[[VisualTokens, int], Reduction]


@dataclass(frozen=True)
class Run:
    """Consecutive tokens that are reduced alone: the first, their grid, how many are kept."""

    start: int
    grid: Grid
    keep: int

    @property
    def size(self) -> int:
        return math.prod(self.grid)


def deal(total: int, sizes: list[int]) -> list[int]:
    """`total` dealt over parts in proportion to their sizes, never more than a size.

    total: at most sum(sizes). Parts of equal size get shares that differ by at most one.
    """
    whole = sum(sizes)
    edges = [0, *accumulate(sizes)]
    return [total * stop // whole - total * start // whole for start, stop in pairwise(edges)]


def shares(total: int, parts: int) -> list[int]:
    """`total` dealt over `parts` as evenly as whole numbers allow, the larger ones spread out."""
    return [total * (i + 1) // parts - total * i // parts for i in range(parts)]


def cut_after(features: Tensor, threshold: float, least: int) -> Tensor:
    """(B, T, n, D) -> (B, T - 1) bool: after which frames a video is cut into segments.

    Where the mean features of neighbours have a cosine below `threshold`, and at the `least` least
    similar neighbours, or all if there are fewer.
    """
    mean = unit(wide(features).mean(2))
    near = (mean[:, 1:] * mean[:, :-1]).sum(2)
    return (near < threshold).scatter(1, top(-near, min(least, near.shape[1])), True)


def by_frame(tokens: VisualTokens, keep: int, select: Select) -> Reduction:
    """Each frame reduced alone to its share of `keep`."""
    t, h, w = tokens.grid
    runs = [Run(i * h * w, (1, h, w), count) for i, count in enumerate(shares(keep, t))]
    return by_run(tokens, runs, select)


def by_window(
    tokens: VisualTokens, keep: int, select: Select, most: int | None = None
) -> Reduction:
    """Windows of at most `most` tokens, each reduced alone: memory linear in N.

    Windows consist of whole frames if those fit, else of whole rows, else of tokens. Each keeps a
    share of `keep` in proportion to its length. most: default `WINDOW`.
    """
    _, h, w = tokens.grid
    most = WINDOW if most is None else most
    unit = next(size for size in (h * w, w, 1) if size <= most)
    parts = -(-(tokens.count // unit) // (most // unit))
    lengths = shares(tokens.count // unit, parts)
    runs, start, done = [], 0, 0
    for length in lengths:
        stop = start + length * unit
        share = keep * stop // tokens.count - done
        grid = (length, h, w) if unit == h * w else (1, length, w) if unit == w else (1, 1, length)
        runs.append(Run(start, grid, share))
        start, done = stop, done + share
    return by_run(tokens, runs, select, at_once=most)


def by_run(
    tokens: VisualTokens, runs: list[Run], select: Select, at_once: int | None = None
) -> Reduction:
    """Each run reduced alone, equal runs in one batch; tokens of no run are dropped.

    runs: in ascending order. at_once: most tokens of an input to reduce in one batch.
    """
    b, n, d = tokens.features.shape
    device = tokens.features.device
    assign = torch.full((b, n), -1, dtype=torch.int64, device=device)
    first = [0]
    for run in runs:
        first.append(first[-1] + run.keep)
    pieces: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    rows: list[int] = []
    for group in _equal(runs, at_once):
        run = runs[group[0]]
        base = on_device([runs[i].start for i in group], device)[:, None]
        part = tokens.fold(base[:, 0], run.grid)
        whole = run.keep == run.size
        out = Reduction.identity(part.features, part.size) if whole else select(part, run.keep)
        row = on_device([first[i] for i in group], device)[:, None]
        own = out.assign.reshape(b, len(group), run.size)
        index = (base + torch.arange(run.size, device=device)).flatten()
        assign[:, index] = torch.where(own < 0, own, own + row).flatten(1)
        anchor = out.anchor.reshape(b, len(group), run.keep) + base
        pieces.append((out.features.reshape(b, -1, d), anchor.flatten(1), out.size.reshape(b, -1)))
        rows += [first[i] + j for i in group for j in range(run.keep)]
    place = on_device(sorted(range(len(rows)), key=rows.__getitem__), device)
    features, anchor, size = (torch.cat(list(part), 1) for part in zip(*pieces, strict=True))
    return Reduction(features[:, place], assign, anchor[:, place], size[:, place])


def _equal(runs: list[Run], at_once: int | None) -> list[list[int]]:
    """Indices of runs of the same grid and keep, in groups within `at_once` tokens."""
    alike: dict[tuple[Grid, int], list[int]] = {}
    for i, run in enumerate(runs):
        if run.keep:
            alike.setdefault((run.grid, run.keep), []).append(i)
    groups = []
    for (grid, _), members in alike.items():
        step = len(members) if at_once is None else max(1, at_once // math.prod(grid))
        edges = [*range(0, len(members), step), len(members)]
        groups += [members[a:b] for a, b in pairwise(edges)]
    return groups
