"""DUET's two ways to find contextual tokens: in a pool of salient ones, and by attention."""

from __future__ import annotations

import torch
from torch import Tensor

from compress import ops


def by_keys(keys: Tensor, pool: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Anchors (B, count), evenly spaced over `pool` (B, P), and assign (B, N) of the pool to them.

    A token goes to the anchor of most similar key (B, N, Dk); tokens not in the pool go to none.
    """
    anchors = pool[:, :: max(1, pool.shape[1] // count)][:, :count]
    return anchors, ops.to_nearest(keys, anchors, pool)


def by_attention(attention: Tensor, rest: Tensor, count: int, width: int) -> tuple[Tensor, Tensor]:
    """Anchors (B, count), the first of `rest` (B, R), and assign (B, N) of the others to them.

    Each anchor takes the `width` - 1 tokens of the rest that it attends to most, by attention
    (B, N, N); a token that several take goes to the one that attends to it most.
    """
    b, n, _ = attention.shape
    anchors = rest[:, :count]
    seen = ops.wide(ops.gather(attention, anchors))  # (B, count, N)
    free = torch.zeros(b, n, dtype=torch.bool, device=rest.device)
    free.scatter_(1, rest[:, count:], True)
    seen = seen.masked_fill(~free[:, None], -1.0)
    order = seen.sort(dim=2, descending=True, stable=True).indices[..., : width - 1]
    taken = torch.zeros_like(seen, dtype=torch.bool).scatter_(2, order, True)
    best, row = seen.masked_fill(~taken, -1.0).max(dim=1)
    assign = torch.where(best >= 0, row, -1)
    own = torch.arange(count, device=rest.device).expand(b, count)
    return anchors, assign.scatter(1, anchors, own)
