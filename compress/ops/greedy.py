"""Greedy selections: the farthest, the largest volume, the best cover. Batched, deterministic.

Shapes: B inputs, N tokens, D channels, R needs. All return (B, count) int64 indices in the order of
selection; ties go to the lower index. There are three ways, with the same result:

- On CUDA, where each operation of a loop is a kernel launch, `volume`, `span` and `cover` are one
  Triton kernel each (`compress.ops.triton_greedy`); `farthest` takes three launches a selection.
- Without Triton, or for a table above `FUSED` entries an input, an eager loop over the whole batch.
- On a CPU, where looking at a value costs nothing, inputs go one by one, and work that cannot
  change the next selection is put off.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from compress.ops import similarity
from compress.ops.selection import gather, rank

FUSED = 2**21  # one program reads this much from the cache about as fast as a loop is launched


@cache
def _kernels() -> ModuleType | None:
    """The Triton kernels, if Triton is installed."""
    try:
        from compress.ops import triton_greedy
    except ImportError:
        return None
    return triton_greedy


def _fused(table: Tensor) -> ModuleType | None:
    """The kernels, if they serve this table."""
    return _kernels() if table.is_cuda and table[0].numel() <= FUSED else None


@torch.no_grad()
def farthest(vectors: Tensor, count: int, weight: Tensor | None = None) -> Tensor:
    """Max-min diversity (DivPrune, section 3) of vectors (B, N, D).

    Distance is 1 - cosine, times the token's weight (B, N), not negative, if there is one. The
    first selected is the token farthest from its nearest other, each next one the farthest from its
    nearest selected.
    """
    selected = []
    for part in similarity.batches(*vectors.shape[:2]):
        near = similarity.gram(similarity.unit(vectors[part]))
        if weight is not None:
            least = torch.finfo(near.dtype).tiny
            near = (near - 1) * similarity.wide(weight[part]).clamp(min=least)[:, None]
        own = near.diagonal(dim1=1, dim2=2)
        sample = torch.arange(len(near), device=near.device)
        own.fill_(-torch.inf)
        first = near.amax(1).argmin(1)
        own.fill_(torch.inf)  # a token is not selected twice
        indices, cover = [first], near[sample, first]
        for _ in range(count - 1):
            index = cover.argmin(1)
            indices.append(index)
            torch.maximum(cover, near[sample, index], out=cover)
        selected.append(torch.stack(indices, 1))
    return torch.cat(selected)


def _limits(left: Tensor) -> tuple[Tensor, Tensor]:
    """Below which a token counts as spanned, and its score from then on: after all others."""
    return 1e-5 * left, left - left.amax(1, keepdim=True) - 1.0


@torch.no_grad()
def volume(kernel: Tensor, count: int) -> Tensor:
    """Greedy MAP of a determinantal point process, its kernel (B, N, N) positive semi-definite.

    Each selected token has the largest part of its diagonal not yet spanned (Chen et al. 2018,
    algorithm 1). Once what is left of a token is below 1e-5 of it (rank used up, or a duplicate),
    it ranks after all others, by its diagonal. For a kernel x x^T see `span`.
    """
    if (kernels := _fused(kernel)) is not None:
        found: Tensor = kernels.volume(kernel, count)
        return found
    left = kernel.diagonal(dim1=1, dim2=2).clone()
    limit, late = _limits(left)
    done = torch.zeros_like(left, dtype=torch.bool)
    basis = kernel.new_zeros(len(kernel), count, kernel.shape[1])
    indices = []
    for step in range(count):
        score = torch.where(left > limit, left, late).masked_fill_(done, -torch.inf)
        index = score.argmax(1, keepdim=True)
        indices.append(index)
        done.scatter_(1, index, True)
        seen = basis[:, :step]
        spanned = seen.gather(2, index[:, None].expand(-1, step, 1)).transpose(1, 2)
        row = gather(kernel, index)[:, 0] - (spanned @ seen)[:, 0]
        rest = left.gather(1, index)
        fresh = rest > limit.gather(1, index)
        row = torch.where(fresh, row / rest.clamp(min=1e-30).sqrt(), 0.0)
        basis[:, step] = row
        left -= row.square()
    return torch.cat(indices, 1)


@torch.no_grad()
def span(x: Tensor, count: int, together: bool | None = None, pool: int = 128) -> Tensor:
    """`volume` of the kernel x x^T, x (B, N, D).

    On a CPU by Gram-Schmidt, with memory linear in N: tokens come from the `pool` tokens with the
    most left, as long as they beat what any token outside had left when all were last updated; what
    is left never grows. together: all inputs at once, from the N x N table. Default: on a GPU.
    """
    x = similarity.wide(x)
    together = similarity.on_gpu(x) if together is None else together
    if not together:
        return torch.stack([_span_one(part, count, pool) for part in x])
    parts = similarity.batches(*x.shape[:2])
    return torch.cat([volume(similarity.gram(x[part]), count) for part in parts])


def _span_one(x: Tensor, count: int, size: int) -> Tensor:
    """One input (N, D), all tokens updated once the pool has no sure selection any more."""
    score = left = x.norm(dim=1).square()
    limit, late = (value[0] for value in _limits(left[None]))
    basis, selected = x.new_zeros(0, x.shape[1]), torch.zeros(0, dtype=torch.int64, device=x.device)
    while len(selected) < count:
        ranked = rank(score[None])[0]
        if score[ranked[0]] < 0:  # none has anything left: the order no longer changes
            return torch.cat([selected, ranked[: count - len(selected)]])
        pool = ranked[:size].sort().values
        outside = score[ranked[size]] if size < len(x) else -torch.inf
        own, least, part = score[pool], limit[pool], x[pool]
        part -= part @ basis.T @ basis
        new: list[int] = []
        axes: list[Tensor] = []
        while len(selected) + len(new) < count:
            best = int(own.argmax())
            if new and not (own[best] > outside and own[best] > least[best]):
                break
            new.append(best)
            axes.append(part[best] / part[best].norm())
            along = part @ axes[-1]
            own.addcmul_(along, along, value=-1)
            own[best] = -torch.inf
            part.addr_(along, axes[-1], alpha=-1)
        added = torch.stack(axes)
        selected, basis = torch.cat([selected, pool[new]]), torch.cat([basis, added])
        left = left - (x @ added.T).square().sum(1)
        score = torch.where(left > limit, left, late)
        score[selected] = -torch.inf
    return selected


@torch.no_grad()
def cover(table: Tensor, count: int, together: bool | None = None) -> Tensor:
    """Greedy facility location: table (B, R, N) >= 0, what token j gives need r.

    Each selected token adds most to the sum over r of the largest table[r, j] of all selected j
    (MMTok, section 3). A gain below 1e-6 of the first one counts as nothing. together: all inputs
    at once. Default: on a GPU.
    """
    together = similarity.on_gpu(table) if together is None else together
    if not together:
        return torch.cat([_cover_one(part, count) for part in table.split(1)])
    if (kernels := _fused(table)) is not None:
        index: Tensor = kernels.cover(table, count)
        return index
    return _cover_all(table, count)


@torch.no_grad()
def gains(table: Tensor) -> Tensor:
    """(B, N), descending: what each further token adds to the total of `cover`, all tokens taken in
    its order."""
    order = cover(table, table.shape[2])
    ranked = table.gather(2, order[:, None].expand(-1, table.shape[1], -1))
    covered = ranked.cummax(2).values.sum(1)
    added = covered.diff(dim=1, prepend=torch.zeros_like(covered[:, :1]))
    return added.cummin(1).values  # rounding apart, it is


def _cover_all(table: Tensor, count: int) -> Tensor:
    """All gains computed again at every selection."""
    met = table.new_zeros(*table.shape[:2], 1)
    done = torch.zeros_like(table[:, 0], dtype=torch.bool)
    least, indices = None, []
    for _ in range(count):
        gain = (table - met).clamp_(min=0).sum(1)
        least = 1e-6 * gain.amax(1, keepdim=True) if least is None else least
        gain = torch.where(gain > least, gain, 0.0).masked_fill(done, -torch.inf)
        index = gain.argmax(1, keepdim=True)
        indices.append(index)
        done.scatter_(1, index, True)
        met = torch.maximum(met, table.gather(2, index[:, None].expand(-1, met.shape[1], 1)))
    return torch.cat(indices, 1)


def _cover_one(table: Tensor, count: int) -> Tensor:
    """Of one input, only what the needs of the last selection change: about 1 / selections of them.

    In NumPy: on so little data a call of torch costs more than what it does.
    """
    gives = table[0].contiguous().numpy()
    met = np.zeros_like(gives[:, :1])
    gain = gives.sum(0, dtype=np.float64)
    least, done = 1e-6 * gain.max(), np.zeros(len(gain), dtype=bool)
    indices = []
    for _ in range(count):
        # rounded, so that another order of adding up cannot part equal tokens
        score = np.where(gain > least, gain, 0.0).astype(np.float32)
        score[done] = -np.inf
        index = int(score.argmax())
        indices.append(index)
        done[index] = True
        now = gives[:, index, None]
        needs = np.flatnonzero(now > met)
        before, after = met[needs], now[needs]
        met[needs] = after
        lost = gives[needs]
        np.clip(lost, before, after, out=lost)
        lost -= before
        gain -= lost.sum(0, dtype=np.float64)
    return torch.tensor([indices])


@torch.no_grad()
def stepwise(
    table: Tensor,
    state: Tensor,
    count: int,
    score: Callable[[Tensor], Tensor],
    take: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """One token after another, each the best of those that are left by what was taken before.

    table: (B, N, N), what each token is to each other, symmetric. state: (B, N), what is known of
    each before the first. score(state) gives (B, N). take(state, row, own) gives the next state:
    row (B, N) of the table is that of the one taken, own (B, 1) its state.
    """
    done = torch.zeros_like(state)
    sample = torch.arange(len(table), device=table.device)
    indices = []
    for _ in range(count):
        index = (score(state) + done).argmax(1)
        indices.append(index)
        done.index_put_((sample, index), done.new_tensor(-torch.inf))
        state = take(state, table[sample, index], state[sample, index][:, None])
    return torch.stack(indices, 1)
