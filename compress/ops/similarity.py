"""Similarities, distances and scales, in float32 or better whatever the type of the features.

A table of all pairs is symmetric bit for bit: one triangle is computed and mirrored, since a matrix
product rounds (i, j) and (j, i) differently and two tokens that are each other's nearest would not
tie.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

PAIRS = 2**24  # similarities held at once where no full N x N table is needed: 64 MiB of float32
TILE = 192  # rows of a symmetric table computed at once on a CPU
TABLES = 2**27  # entries of full N x N tables held at once, over the inputs of a batch: 512 MiB


def on_gpu(x: Tensor) -> bool:
    """Whether a look at a value of x waits for a device and each operation is a kernel launch."""
    return x.device.type != "cpu"


def rows_at_once(pairs_in_row: int) -> int:
    """Rows of a table, each with `pairs_in_row` entries, that are computed at once."""
    return max(1, PAIRS // max(1, pairs_in_row))


def batches(count: int, tokens: int) -> Iterator[slice]:
    """Slices of a batch of `count` inputs whose N x N tables, N = `tokens`, fit in memory
    together."""
    step = max(1, TABLES // (tokens * tokens))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def wide(x: Tensor) -> Tensor:
    """x in float32, or float64 if it was."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit(x: Tensor) -> Tensor:
    """Rows of x (..., D) at length 1, in float32 or better; a zero row stays zero."""
    x = wide(x)
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """(B, N, D), (B, M, D) -> (B, N, M) cosine similarity; 0 with a zero vector.

    Symmetric bit for bit if `a` is `b`.
    """
    if a is b:
        return gram(unit(a))
    a, b = unit(a), unit(b)
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype) @ b.to(dtype).mT


def gram(x: Tensor) -> Tensor:
    """(B, N, D) -> x x^T (B, N, N), symmetric bit for bit; on a CPU each pair is computed once."""
    if on_gpu(x):
        return _mirror(x @ x.mT)
    n = x.shape[1]
    out = x.new_empty(len(x), n, n)
    for start in range(0, n, TILE):
        stop = min(n, start + TILE)
        block = x[:, start:stop] @ x[:, :stop].mT
        out[:, start:stop, :start] = block[..., :start]
        out[:, :start, start:stop] = block[..., :start].mT
        out[:, start:stop, start:stop] = _mirror(block[..., start:])
    return out


def _mirror(table: Tensor) -> Tensor:
    """(B, N, N) with its lower triangle in place of the upper one."""
    n = table.shape[-1]
    lower = torch.ones(n, n, dtype=torch.bool, device=table.device).tril_()
    return torch.where(lower, table, table.mT)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(B, N, D), (B, M, D) -> (B, N, M) squared Euclidean distance / D, float32 or better.

    Symmetric bit for bit if `x` is `y`.
    """
    if x is y:
        x = wide(x)
        return _apart(x, x, gram(x))
    x, y = wide(x), wide(y)
    base = _square(x)[..., None] + _square(y)[:, None]
    return torch.baddbmm(base, x, y.mT, alpha=-2).clamp_(min=0).div_(x.shape[2])


def _square(x: Tensor) -> Tensor:
    return x.square().sum(2)


def _apart(x: Tensor, y: Tensor, products: Tensor) -> Tensor:
    """Squared distances of x (B, N, D) and y (B, M, D) / D, from x y^T, which is overwritten."""
    base = _square(x)[..., None] + _square(y)[:, None]
    return products.mul_(-2).add_(base).clamp_(min=0).div_(x.shape[2])


def distance_rows(x: Tensor, step: int) -> Iterator[tuple[slice, Tensor]]:
    """The table `squared_distances(x, x)`, `step` rows at a time: slices of N, (B, rows, N).

    Rows of different slices agree bit for bit: d(i, j) == d(j, i).
    """
    x, n = wide(x), x.shape[1]
    if step >= n:
        yield slice(0, n), squared_distances(x, x)
        return
    parts = [slice(start, min(n, start + step)) for start in range(0, n, step)]
    for rows in parts:
        tiles = [_tile(x, rows, columns) for columns in parts]
        yield rows, _apart(x[:, rows], x, torch.cat(tiles, 2))


def _tile(x: Tensor, rows: slice, columns: slice) -> Tensor:
    """Products of x[:, rows] and x[:, columns]: always computed with the later part on the left."""
    if rows.start < columns.start:
        return _tile(x, columns, rows).mT
    tile = x[:, rows] @ x[:, columns].mT
    return _mirror(tile) if rows == columns else tile


def minmax(x: Tensor) -> Tensor:
    """(B, N) scaled to 0..1 in each sample, float32 or better; a constant row becomes zeros."""
    x = wide(x)
    low, high = x.aminmax(dim=1, keepdim=True)
    return (x - low) / (high - low).clamp(min=torch.finfo(x.dtype).tiny)
