"""Greedy selections: the farthest, the largest volume, the best cover. Batched, deterministic.

Shapes: B inputs, N tokens, D channels, R needs. All return (B, count) int64 indices in pick order;
ties go to the lower index. On a GPU all inputs of a batch go together and the host looks at no
pick. On a CPU, where a look costs nothing, inputs go one by one and work that cannot change the
next pick is put off; the picks are the same.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from compress import ops


def _samples(x: Tensor, together: bool) -> tuple[Tensor, ...]:
    return (x,) if together else x.split(1)


@torch.no_grad()
def farthest(vectors: Tensor, count: int) -> Tensor:
    """Max-min diversity (DivPrune, section 3) of vectors (B, N, D).

    Distance is 1 - cosine. The first pick is the token farthest from its nearest other, then each
    the farthest from its nearest pick.
    """
    picks = []
    for part in ops.batches(*vectors.shape[:2]):
        near = ops.gram(ops.unit(vectors[part]))
        own = near.diagonal(dim1=1, dim2=2)
        sample = torch.arange(len(near), device=near.device)
        own.fill_(-2.0)
        pick = near.amax(2).argmin(1)
        own.fill_(torch.inf)  # what was picked is not picked again
        chosen, cover = [pick], near[sample, pick]
        for _ in range(count - 1):
            pick = cover.argmin(1)
            chosen.append(pick)
            torch.maximum(cover, near[sample, pick], out=cover)
        picks.append(torch.stack(chosen, 1))
    return torch.cat(picks)


def _limits(left: Tensor) -> tuple[Tensor, Tensor]:
    """Below which a token counts as spanned, and its score from then on: after all others."""
    return 1e-5 * left, left - left.amax(1, keepdim=True) - 1.0


@torch.no_grad()
def volume(kernel: Tensor, count: int) -> Tensor:
    """Greedy MAP of a determinantal point process, its kernel (B, N, N) positive semi-definite.

    Each pick has the largest part of its diagonal not yet spanned (Chen et al. 2018, algorithm 1).
    Once what is left of a token is below 1e-5 of it (rank used up, or a duplicate), it ranks after
    all others, by its diagonal. For a kernel x x^T see `span`, which needs no table.
    """
    left = kernel.diagonal(dim1=1, dim2=2).clone()
    limit, late = _limits(left)
    done = torch.zeros_like(left, dtype=torch.bool)
    basis = kernel.new_zeros(len(kernel), count, kernel.shape[1])
    chosen = []
    for step in range(count):
        score = torch.where(left > limit, left, late).masked_fill_(done, -torch.inf)
        pick = score.argmax(1, keepdim=True)
        chosen.append(pick)
        done.scatter_(1, pick, True)
        seen = basis[:, :step]
        spanned = seen.gather(2, pick[:, None].expand(-1, step, 1)).transpose(1, 2)
        row = ops.gather(kernel, pick)[:, 0] - (spanned @ seen)[:, 0]
        rest = left.gather(1, pick)
        fresh = rest > limit.gather(1, pick)
        row = torch.where(fresh, row / rest.clamp(min=1e-30).sqrt(), 0.0)
        basis[:, step] = row
        left -= row.square()
    return torch.cat(chosen, 1)


@torch.no_grad()
def span(x: Tensor, count: int, together: bool | None = None, pool: int = 128) -> Tensor:
    """`volume` of the kernel x x^T, x (B, N, D), by Gram-Schmidt: memory linear in N.

    together: see the module's text. Otherwise the picks come from the `pool` tokens with the most
    left, as long as they beat what any token outside had left when all were last updated: what is
    left never grows.
    """
    x = ops.wide(x)
    together = x.is_cuda if together is None else together
    if together:
        return _span_all(x, count)
    return torch.stack([_span_one(part, count, pool) for part in x])


def _span_all(x: Tensor, count: int) -> Tensor:
    """All tokens updated at every pick."""
    left, rest = x.square().sum(2), x.clone()
    limit, late = _limits(left)
    done, chosen = torch.zeros_like(left, dtype=torch.bool), []
    for _ in range(count):
        score = torch.where(left > limit, left, late).masked_fill_(done, -torch.inf)
        best = score.max(1, keepdim=True)
        chosen.append(best.indices)
        done.scatter_(1, best.indices, True)
        axis = ops.gather(rest, best.indices)
        axis = axis / axis.norm(dim=2, keepdim=True).clamp(min=1e-30)
        axis = torch.where(best.values[..., None] > 0, axis, 0.0)
        along = rest @ axis.mT
        left -= along[..., 0].square()
        rest -= along * axis
    return torch.cat(chosen, 1)


def _span_one(x: Tensor, count: int, size: int) -> Tensor:
    """One input (N, D), all tokens updated once the pool has no sure pick any more."""
    score = left = x.norm(dim=1).square()
    limit, late = (value[0] for value in _limits(left[None]))
    basis, picks = x.new_zeros(0, x.shape[1]), torch.zeros(0, dtype=torch.int64, device=x.device)
    while len(picks) < count:
        ranked = ops.rank(score[None])[0]
        if score[ranked[0]] < 0:  # none has anything left: the order no longer changes
            return torch.cat([picks, ranked[: count - len(picks)]])
        pool = ranked[:size].sort().values
        outside = score[ranked[size]] if size < len(x) else -torch.inf
        own, least, part = score[pool], limit[pool], x[pool]
        part -= part @ basis.T @ basis
        new: list[int] = []
        axes: list[Tensor] = []
        while len(picks) + len(new) < count:
            at = int(own.argmax())
            if new and not (own[at] > outside and own[at] > least[at]):
                break
            new.append(at)
            axes.append(part[at] / part[at].norm())
            along = part @ axes[-1]
            own.addcmul_(along, along, value=-1)
            own[at] = -torch.inf
            part.addr_(along, axes[-1], alpha=-1)
        added = torch.stack(axes)
        picks, basis = torch.cat([picks, pool[new]]), torch.cat([basis, added])
        left = left - (x @ added.T).square().sum(1)
        score = torch.where(left > limit, left, late)
        score[picks] = -torch.inf
    return picks


@torch.no_grad()
def cover(table: Tensor, count: int, together: bool | None = None) -> Tensor:
    """Greedy facility location: table (B, R, N) >= 0, what token j gives need r.

    Each pick adds most to sum_r max over picks of table[r, j] (MMTok, section 3). What is below
    1e-6 of the first pick's gain counts as nothing. together: see the module's text.
    """
    together = table.is_cuda if together is None else together
    pick = _cover_all if together else _cover_one
    return torch.cat([pick(part, count) for part in _samples(table, together)])


def _cover_all(table: Tensor, count: int) -> Tensor:
    """All gains computed again at every pick."""
    met = table.new_zeros(*table.shape[:2], 1)
    done = torch.zeros_like(table[:, 0], dtype=torch.bool)
    least, chosen = None, []
    for _ in range(count):
        gain = (table - met).clamp_(min=0).sum(1)
        least = 1e-6 * gain.amax(1, keepdim=True) if least is None else least
        gain = torch.where(gain > least, gain, 0.0).masked_fill(done, -torch.inf)
        pick = gain.argmax(1, keepdim=True)
        chosen.append(pick)
        done.scatter_(1, pick, True)
        met = torch.maximum(met, table.gather(2, pick[:, None].expand(-1, met.shape[1], 1)))
    return torch.cat(chosen, 1)


def _cover_one(table: Tensor, count: int) -> Tensor:
    """Of one input, only what a pick's own needs change: a share of about 1 / picks of them.

    In NumPy: on so little data a call of torch costs more than what it does.
    """
    gives = table[0].contiguous().numpy()
    met = np.zeros_like(gives[:, :1])
    gain = gives.sum(0, dtype=np.float64)
    least, done = 1e-6 * gain.max(), np.zeros(len(gain), dtype=bool)
    picks = []
    for _ in range(count):
        # rounded, so that what adding up in another order did cannot part equal tokens
        score = np.where(gain > least, gain, 0.0).astype(np.float32)
        score[done] = -np.inf
        pick = int(score.argmax())
        picks.append(pick)
        done[pick] = True
        now = gives[:, pick, None]
        needs = np.flatnonzero(now > met)
        before, after = met[needs], now[needs]
        met[needs] = after
        lost = gives[needs]
        np.clip(lost, before, after, out=lost)
        lost -= before
        gain -= lost.sum(0, dtype=np.float64)
    return torch.tensor([picks])
