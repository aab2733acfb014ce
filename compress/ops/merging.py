"""Pruning and merging: from selected tokens to a `Reduction`."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.ops import similarity
from compress.ops.selection import gather
from compress.ops.similarity import rows_at_once, squared_distances, unit, wide
from compress.tokens import Reduction


def segment_sum(x: Tensor, assign: Tensor, count: int) -> Tensor:
    """Sum x (B, N, D) by row assign (B, N) in -1..count-1 -> (B, count, D); -1 goes nowhere.

    Differentiable, and bit-reproducible also on CUDA, where index_add_ is not.
    """
    b, _, d = x.shape
    offset = torch.arange(b, device=x.device)[:, None] * (count + 1)
    where = (assign + 1 + offset).flatten()
    out = x.new_zeros(b * (count + 1), d)
    if similarity.on_gpu(x):
        out = out.index_put((where,), x.reshape(-1, d), accumulate=True)
    else:
        out = out.index_add(0, where, x.reshape(-1, d))
    return out.reshape(b, count + 1, d)[:, 1:]


def segment_median(x: Tensor, assign: Tensor, count: int) -> Tensor:
    """The lower median, channel by channel, of x (N, D) by row assign (N,) in -1..count-1, where no
    row is empty -> (count, D); -1 goes nowhere."""
    sizes = x.new_zeros(count + 1, dtype=torch.int64).scatter_add_(
        0, assign + 1, torch.ones_like(assign)
    )
    first = sizes.cumsum(0) - sizes
    middle = (first + (sizes - 1).clamp(min=0) // 2)[1:]
    by_value = x.sort(dim=0, stable=True)
    rows = assign[by_value.indices]
    order = rows.sort(dim=0, stable=True).indices
    return by_value.values.gather(0, order.gather(0, middle[:, None].expand(-1, x.shape[1])))


def prune(features: Tensor, index: Tensor, size: Tensor | None = None) -> Reduction:
    """Tokens at index (B, M), distinct, in raster order; the rest dropped.

    size: (B, N) int64, dense tokens merged in each token, default one each.
    """
    index = index.sort(dim=1).values
    b, m = index.shape
    assign = index.new_full(features.shape[:2], -1)
    assign.scatter_(1, index, torch.arange(m, device=index.device).expand(b, m))
    sizes = torch.ones_like(index) if size is None else size.gather(1, index)
    return Reduction(gather(features, index), assign, index, sizes)


def merge(
    features: Tensor,
    anchor: Tensor,
    assign: Tensor,
    size: Tensor | None = None,
    rule: str = "mean",
    raster: bool = True,
) -> Reduction:
    """Tokens merged into the rows of their anchors.

    features: (B, N, D). anchor: (B, M) distinct tokens. assign: (B, N), the row of each token or
    -1; an anchor is always in its own row. size: (B, N) int64, dense tokens merged in each token,
    default one each. rule: "mean", the size-weighted mean, which conserves the size-weighted sum,
    or "add", the anchor plus the mean of its other members (the released VisionZip and DUET), which
    conserves nothing. raster: order rows by anchor. A row with one member is that token, bit for
    bit. Raises ValueError for an unknown rule.
    """
    if rule not in ("mean", "add"):
        raise ValueError(f"rule is {rule!r}; it must be mean or add")
    b, m = anchor.shape
    if raster:
        anchor, order = anchor.sort(dim=1)
        place = order.argsort(dim=1)
        assign = torch.where(assign < 0, assign, place.gather(1, assign.clamp(min=0)))
    own = torch.arange(m, device=anchor.device).expand(b, m)
    assign = assign.scatter(1, anchor, own)
    weights = torch.ones_like(assign) if size is None else size
    total = weights.new_zeros(b, m + 1).scatter_add_(1, assign + 1, weights)[:, 1:]
    centre, weight = wide(gather(features, anchor)), weights.gather(1, anchor)
    away = assign.scatter(1, anchor, -1)  # members other than the anchor
    x = wide(features) if size is None else wide(features) * size[..., None]
    rest = segment_sum(x, away, m)
    count = (total - weight)[..., None]
    if rule == "add":
        merged = centre + rest / count.clamp(min=1)
    else:
        merged = (centre * weight[..., None] + rest) / total[..., None]
    merged = torch.where(count > 0, merged, centre).to(features.dtype)
    return Reduction(merged, assign, anchor, total)


@torch.no_grad()
def to_nearest(similarity_of: Tensor, centres: Tensor, members: Tensor | None = None) -> Tensor:
    """Row of the most cosine-similar centre for each token -> assign (B, N), -1 for the rest.

    similarity_of: (B, N, D) vectors to compare. centres: (B, M) and members: (B, P) are tokens;
    members default to all. Centres go to their own rows.
    """
    b, n, _ = similarity_of.shape
    vectors = unit(similarity_of)
    targets = gather(vectors, centres).transpose(1, 2)
    sources = vectors if members is None else gather(vectors, members)
    step = rows_at_once(b * centres.shape[1])
    parts = [(part @ targets).argmax(dim=2) for part in sources.split(step, dim=1)]
    best = torch.cat(parts, dim=1)
    assign = best if members is None else centres.new_full((b, n), -1).scatter(1, members, best)
    own = torch.arange(centres.shape[1], device=centres.device).expand_as(centres)
    return assign.scatter(1, centres, own)


@torch.no_grad()
def to_closest(x: Tensor, centres: Tensor) -> Tensor:
    """assign (B, N): row of the centre (B, M) at the smallest distance; centres to their own."""
    b, m = centres.shape
    targets = gather(x, centres)
    step = rows_at_once(b * m)
    parts = [squared_distances(part, targets).argmin(2) for part in x.split(step, dim=1)]
    own = torch.arange(m, device=x.device).expand(b, m)
    return torch.cat(parts, 1).scatter(1, centres, own)
