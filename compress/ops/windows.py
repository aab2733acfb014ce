"""Long inputs in parts: a video frame by frame, or in windows of whole frames."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from compress.tokens import Grid, Reduction, VisualTokens

CELLS = 8192  # most cells that a method with an N x N table sees at once

Pick = Callable[[VisualTokens, int], Reduction]


@dataclass(frozen=True)
class Run:
    """Consecutive cells that are reduced alone: the first, their grid, how many are kept."""

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


def by_frame(tokens: VisualTokens, keep: int, pick: Pick) -> Reduction:
    """Each frame reduced alone to its share of `keep`."""
    t, h, w = tokens.grid
    runs = [Run(i * h * w, (1, h, w), count) for i, count in enumerate(shares(keep, t))]
    return by_run(tokens, runs, pick)


def by_window(tokens: VisualTokens, keep: int, pick: Pick, cells: int | None = None) -> Reduction:
    """Windows of at most `cells` cells (whole frames, rows or cells): memory linear in N.

    A window keeps its share of `keep` by its length. cells: default `CELLS`.
    """
    _, h, w = tokens.grid
    cells = CELLS if cells is None else cells
    unit = next(size for size in (h * w, w, 1) if size <= cells)
    parts = -(-(tokens.count // unit) // (cells // unit))
    lengths = shares(tokens.count // unit, parts)
    runs, start, done = [], 0, 0
    for length in lengths:
        stop = start + length * unit
        share = keep * stop // tokens.count - done
        grid = (length, h, w) if unit == h * w else (1, length, w) if unit == w else (1, 1, length)
        runs.append(Run(start, grid, share))
        start, done = stop, done + share
    return by_run(tokens, runs, pick, at_once=cells)


def by_run(
    tokens: VisualTokens, runs: list[Run], pick: Pick, at_once: int | None = None
) -> Reduction:
    """Each run reduced alone, equal runs in one batch; cells of no run are dropped.

    runs: in ascending order. at_once: most cells of an input to reduce in one batch.
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
        run, starts = runs[group[0]], [runs[i].start for i in group]
        part = tokens.fold(starts, run.grid)
        whole = run.keep == run.size
        out = Reduction.identity(part.features, part.size) if whole else pick(part, run.keep)
        base = torch.tensor(starts, device=device)[:, None]
        row = torch.tensor([first[i] for i in group], device=device)[:, None]
        own = out.assign.reshape(b, len(group), run.size)
        cells = (base + torch.arange(run.size, device=device)).flatten()
        assign[:, cells] = torch.where(own < 0, own, own + row).flatten(1)
        anchor = out.anchor.reshape(b, len(group), run.keep) + base
        pieces.append((out.features.reshape(b, -1, d), anchor.flatten(1), out.size.reshape(b, -1)))
        rows += [first[i] + j for i in group for j in range(run.keep)]
    place = torch.tensor(rows).argsort().to(device)
    features, anchor, size = (torch.cat(list(part), 1) for part in zip(*pieces, strict=True))
    return Reduction(features[:, place], assign, anchor[:, place], size[:, place])


def _equal(runs: list[Run], at_once: int | None) -> list[list[int]]:
    """Indices of runs of the same grid and keep, in groups within `at_once` cells."""
    kinds: dict[tuple[Grid, int], list[int]] = {}
    for i, run in enumerate(runs):
        if run.keep:
            kinds.setdefault((run.grid, run.keep), []).append(i)
    groups = []
    for (grid, _), members in kinds.items():
        step = len(members) if at_once is None else max(1, at_once // math.prod(grid))
        edges = [*range(0, len(members), step), len(members)]
        groups += [members[a:b] for a, b in pairwise(edges)]
    return groups
