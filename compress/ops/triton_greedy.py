"""The greedy selections of `compress.ops.greedy`, each as one kernel launch.

One program serves one input of the batch and makes all of its selections, since each depends on the
one before. Ties go to the lower index. The arithmetic is that of the eager loops, with sums taken
in another order. Tested in Triton's interpreter only: no GPU has run these kernels yet.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 8192  # entries of a table that a program holds at once


@triton.jit
def _volume(kernel, basis, out, n, count, BLOCK: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    kernel += tl.program_id(0).to(tl.int64) * n * n
    basis += tl.program_id(0).to(tl.int64) * count * n
    out += tl.program_id(0) * count
    token = tl.arange(0, BLOCK).to(tl.int64)
    real = token < n
    left = tl.load(kernel + token * (n + 1), mask=real, other=0.0)
    limit = 1e-5 * left
    late = left - tl.max(left, 0) - 1.0
    free = real
    for step in range(count):
        score = tl.where(left > limit, left, late)
        score = tl.where(free, score, float("-inf"))
        chosen = tl.argmax(score, 0, tie_break_left=True).to(tl.int64)
        tl.store(out + step, chosen)
        is_chosen = token == chosen
        free = free & (token != chosen)
        rest = tl.sum(tl.where(is_chosen, left, 0.0), 0)
        least = tl.sum(tl.where(is_chosen, limit, 0.0), 0)
        row = tl.load(kernel + chosen * n + token, mask=real, other=0.0)
        for start in range(0, step, ROWS):
            before = (start + tl.arange(0, ROWS)).to(tl.int64)
            line = basis + before * n
            spanned = tl.load(line + chosen, mask=before < step, other=0.0)
            valid = (before < step)[:, None] & real[None]
            seen = tl.load(line[:, None] + token[None], mask=valid, other=0.0)
            row -= tl.sum(spanned[:, None] * seen, 0)
        row = tl.where(rest > least, row / tl.sqrt(tl.maximum(rest, 1e-30)), 0.0)
        tl.store(basis + step * n + token, row, mask=real)
        left -= row * row
        tl.debug_barrier()  # the next step reads the row that other threads stored


@triton.jit
def _cover(table, met, out, needs, n, count, BLOCK: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    table += tl.program_id(0).to(tl.int64) * needs * n
    met += tl.program_id(0).to(tl.int64) * needs
    out += tl.program_id(0) * count
    token = tl.arange(0, BLOCK).to(tl.int64)
    real = token < n
    free = real
    least = 0.0
    chosen = tl.full((), 0, tl.int64)
    for step in range(count):
        gain = tl.zeros((BLOCK,), tl.float64)
        for start in range(0, needs, ROWS):
            need = (start + tl.arange(0, ROWS)).to(tl.int64)
            known = need < needs
            line = table + need * n
            before = tl.load(met + need, mask=known, other=0.0)
            latest = tl.load(line + chosen, mask=known & (step > 0), other=0.0)
            before = tl.maximum(before, latest)
            tl.store(met + need, before, mask=known)
            valid = known[:, None] & real[None]
            given = tl.load(line[:, None] + token[None], mask=valid, other=0.0)
            gain += tl.sum(tl.maximum(given - before[:, None], 0.0), 0).to(tl.float64)
        total = gain.to(tl.float32)
        least = tl.where(step == 0, 1e-6 * tl.max(total, 0), least)
        total = tl.where(total > least, total, 0.0)
        total = tl.where(free, total, float("-inf"))
        chosen = tl.argmax(total, 0, tie_break_left=True).to(tl.int64)
        tl.store(out + step, chosen)
        free = free & (token != chosen)
        tl.debug_barrier()  # the next step reads what other threads stored in met


def _launch(kernel: Any, table: Tensor, state: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """(B, count) int64: what `kernel` selects; sizes end in (N, count)."""
    *_, n, count = sizes
    out = torch.empty(len(table), count, dtype=torch.int64, device=table.device)
    block = triton.next_power_of_2(n)
    rows = max(1, min(16, TILE // block))
    options = {"num_warps": max(1, min(16, block * rows // 512)), "enable_fp_fusion": False}
    kernel[(len(table),)](table, state, out, *sizes, BLOCK=block, ROWS=rows, **options)
    return out


def volume(kernel: Tensor, count: int) -> Tensor:
    """`greedy.volume` of a kernel (B, N, N), computed in float32 -> (B, count) int64."""
    kernel = kernel.float().contiguous()
    b, n, _ = kernel.shape
    return _launch(_volume, kernel, kernel.new_empty(b, count, n), (n, count))


def cover(table: Tensor, count: int) -> Tensor:
    """`greedy.cover` of a table (B, R, N), computed in float32 -> (B, count) int64."""
    table = table.float().contiguous()
    b, needs, n = table.shape
    return _launch(_cover, table, table.new_zeros(b, needs), (needs, n, count))
