"""Pure, batched, deterministic operations on tokens. No model, no host sync. Greedy ones: `greedy`.

Shapes: B inputs, N tokens, D channels, M rows kept. Indices are int64. Statistics (similarity,
distance, means) are float32 or better whatever the features' type. Ties go to the lower index.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from compress.tokens import Reduction

PAIRS = 2**24  # similarities held at once where no full N x N table is needed: 64 MiB of float32
TILE = 192  # rows of a symmetric table computed at once
TABLES = 2**27  # entries of full N x N tables held at once, over the inputs of a batch: 512 MiB


def wide(x: Tensor) -> Tensor:
    """x in float32, or float64 if it was."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def gather(x: Tensor, index: Tensor) -> Tensor:
    """x (B, N, ...) at index (B, M) -> (B, M, ...)."""
    extra = (1,) * (x.dim() - 2)
    return x.gather(1, index.reshape(*index.shape, *extra).expand(*index.shape, *x.shape[2:]))


@torch.no_grad()
def rank(scores: Tensor) -> Tensor:
    """(B, N) -> (B, N) indices by score descending, then index ascending."""
    return scores.sort(dim=1, descending=True, stable=True).indices


def top(scores: Tensor, count: int) -> Tensor:
    """(B, N) -> (B, count) indices of the highest scores, best first."""
    return rank(scores)[:, :count]


def others(index: Tensor, total: int) -> Tensor:
    """(B, M) distinct indices -> (B, total - M), the indices not in it, ascending."""
    b, m = index.shape
    taken = torch.zeros(b, total, dtype=torch.bool, device=index.device)
    taken.scatter_(1, index, True)
    return taken.to(torch.uint8).sort(dim=1, stable=True).indices[:, : total - m]


def spread(total: int, count: int, device: torch.device) -> Tensor:
    """(count,) indices at the middles of `count` equal parts of 0..total-1."""
    step = torch.arange(count, device=device)
    return ((2 * step + 1) * total) // max(1, 2 * count)


def unit(x: Tensor) -> Tensor:
    """Rows of x (..., D) at length 1, in float32 or better; a zero row stays zero."""
    x = wide(x)
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """(B, N, D), (B, M, D) -> (B, N, M) cosine similarity; 0 with a zero vector."""
    a, b = unit(a), unit(b)
    kind = torch.promote_types(a.dtype, b.dtype)
    return a.to(kind) @ b.to(kind).mT


def gram(x: Tensor) -> Tensor:
    """(B, N, D) -> x x^T (B, N, N); on a CPU each pair is computed once."""
    if x.is_cuda:
        return x @ x.mT
    n = x.shape[1]
    out = x.new_empty(len(x), n, n)
    for start in range(0, n, TILE):
        stop = min(n, start + TILE)
        block = x[:, start:stop] @ x[:, :stop].mT
        out[:, start:stop, :stop] = block
        out[:, :start, start:stop] = block[..., :start].mT
    return out


def minmax(x: Tensor) -> Tensor:
    """(B, N) scaled to 0..1 in each sample, float32 or better; a constant row becomes zeros."""
    x = wide(x)
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    return (x - low) / (high - low).clamp(min=torch.finfo(x.dtype).tiny)


def segment_sum(x: Tensor, assign: Tensor, count: int) -> Tensor:
    """Sum x (B, N, D) by row assign (B, N) in -1..count-1 -> (B, count, D); -1 goes nowhere.

    Differentiable, and bit-reproducible also on CUDA, where index_add_ is not.
    """
    b, _, d = x.shape
    offset = torch.arange(b, device=x.device)[:, None] * (count + 1)
    where = (assign + 1 + offset).flatten()
    out = x.new_zeros(b * (count + 1), d)
    if x.is_cuda:
        out = out.index_put((where,), x.reshape(-1, d), accumulate=True)
    else:
        out = out.index_add(0, where, x.reshape(-1, d))
    return out.reshape(b, count + 1, d)[:, 1:]


def prune(features: Tensor, index: Tensor, size: Tensor | None = None) -> Reduction:
    """Tokens at index (B, M), distinct, in raster order; the rest dropped.

    size: (B, N) cells in each input token, default one each.
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

    features: (B, N, D). anchor: (B, M) distinct tokens. assign: (B, N), row of each token or -1;
    anchors go to their own rows whatever it says. size: (B, N) cells in each token, default one.
    rule: "mean", the size-weighted mean (conserves the size-weighted sum), or "add", the anchor
    plus the mean of its other members (the released VisionZip and DUET; conserves nothing).
    raster: order rows by anchor. A row with one member is that token, bit for bit.
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
    cells = torch.ones_like(assign) if size is None else size
    total = segment_sum(cells[..., None], assign, m)[..., 0]
    centre, weight = wide(gather(features, anchor)), cells.gather(1, anchor)
    away = assign.scatter(1, anchor, -1)  # members other than the anchor
    rest = segment_sum(wide(features) * cells[..., None], away, m)
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
    step = max(1, PAIRS // max(1, b * centres.shape[1]))
    parts = [(part @ targets).argmax(dim=2) for part in sources.split(step, dim=1)]
    best = torch.cat(parts, dim=1)
    assign = best if members is None else centres.new_full((b, n), -1).scatter(1, members, best)
    own = torch.arange(centres.shape[1], device=centres.device).expand_as(centres)
    return assign.scatter(1, centres, own)


@torch.no_grad()
def text_raters(text: Tensor, visual: Tensor, mask: Tensor | None = None) -> Tensor:
    """Text tokens that the image speaks to (SparseVLM, section 3.2) -> (B, Q) bool.

    text: (B, Q, D), visual: (B, n, D) embeddings at the language model's input. Each visual token
    spreads a softmax over the text; a text token is a rater if its mean share is above the mean.
    mask: (B, Q) bool, True at real tokens. With one text token (or equal ones) all real are kept.
    """
    mask = text.new_ones(text.shape[:2], dtype=torch.bool) if mask is None else mask
    logits = (wide(visual) @ wide(text).transpose(1, 2)).masked_fill(~mask[:, None], -1e30)
    share = logits.softmax(dim=2).mean(dim=1)
    mean = share.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    raters = (share > mean) & mask
    return torch.where(raters.any(1, keepdim=True), raters, mask)


@torch.no_grad()
def by_quota(scores: Tensor, quota: Tensor, count: int, every: bool = True) -> Tensor:
    """(B, count) cells: of each frame its highest scores, as many as its quota says.

    scores: (B, T, n); quota: (B, T) float, summing to about `count`. Whole parts go first, then
    the largest remainders; what does not fit in a frame goes where the quota is exceeded least. A
    score of -inf is taken only when nothing else is left. every: each frame has its best cell
    first, if `count` allows. Exact, without a host sync.
    """
    order = scores.sort(dim=2, descending=True, stable=True).indices
    place = torch.arange(scores.shape[2], device=scores.device).expand_as(order)
    place = torch.empty_like(order).scatter_(2, order, place)  # rank within the frame
    wanted = quota[..., None] - place
    if every and count >= scores.shape[1]:
        wanted = wanted.masked_fill(place == 0, torch.inf)
    wanted = wanted.masked_fill(scores == -torch.inf, -torch.inf)
    return top(wanted.flatten(1), count)


def batches(count: int, cells: int) -> Iterator[slice]:
    """Slices of a batch of `count` inputs whose N x N tables fit in memory together."""
    step = max(1, TABLES // (cells * cells))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(B, N, D), (B, M, D) -> (B, N, M) squared Euclidean distance / D, float32 or better."""
    same, x, y = x is y, wide(x), wide(y)
    base = x.square().sum(2)[..., None] + y.square().sum(2)[:, None]
    if same:
        apart = gram(x).mul_(-2).add_(base)
    else:
        apart = torch.baddbmm(base, x, y.transpose(1, 2), alpha=-2)
    return apart.clamp_(min=0).div_(x.shape[2])


@torch.no_grad()
def density_peaks(x: Tensor, neighbours: int) -> Tensor:
    """DPC-KNN score of each token (Du et al. 2016; Chat-UniVi): (B, N, D) -> (B, N).

    Density is exp(-mean squared distance to the `neighbours` nearest, itself included); delta the
    distance to the nearest denser token (of equal density the lower index is denser), for the
    densest the largest distance of all; distances are divided by sqrt(D). The score is
    log(density * delta). Memory linear in N.
    """
    b, n, _ = x.shape
    step = max(1, PAIRS // (b * n))
    place = torch.arange(n, device=x.device)
    sparse, widest = [], wide(x).new_zeros(b)
    for part in place.split(step):
        apart = squared_distances(x if step >= n else x[:, part], x)
        apart[:, torch.arange(len(part), device=x.device), part] = 0.0
        widest = torch.maximum(widest, apart.amax((1, 2)))
        near = apart.topk(min(neighbours, n), dim=2, largest=False).values
        sparse.append(near.mean(2))
    thin = torch.cat(sparse, 1)  # -log density
    deltas = []
    for part in place.split(step):
        if step < n:
            apart = squared_distances(x[:, part], x)
        here, there = thin[:, part, None], thin[:, None]
        denser = (there < here) | ((there == here) & (place < part[:, None]))
        delta = apart.masked_fill(~denser, torch.inf).amin(2)
        deltas.append(torch.where(denser.any(2), delta, widest[:, None]))
    return torch.cat(deltas, 1).log() / 2 - thin


@torch.no_grad()
def to_closest(x: Tensor, centres: Tensor) -> Tensor:
    """assign (B, N): row of the centre (B, M) at the smallest distance; centres to their own."""
    b, m = centres.shape
    targets = gather(x, centres)
    step = max(1, PAIRS // (b * m))
    parts = [squared_distances(part, targets).argmin(2) for part in x.split(step, dim=1)]
    own = torch.arange(m, device=x.device).expand(b, m)
    return torch.cat(parts, 1).scatter(1, centres, own)


def dpc_knn(x: Tensor, count: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """DPC-KNN clusters of x (B, N, D): centres (B, count), best score first, and assign (B, N).

    `neighbours` above `count` becomes min(3, max(count // 2, 1)), as in Chat-UniVi.
    """
    if neighbours > count:
        neighbours = min(3, max(count // 2, 1))
    centres = top(density_peaks(x, neighbours), count)
    return centres, to_closest(x, centres)
