"""DPC-KNN: clusters around peaks of density."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.ops import similarity
from compress.ops.merging import to_closest
from compress.ops.selection import top


@torch.no_grad()
def density_peaks(x: Tensor, neighbours: int, among: Tensor | None = None) -> Tensor:
    """DPC-KNN score of each token (Du et al. 2016; Chat-UniVi): (B, N, D) -> (B, N).

    Density is exp(-mean squared distance to the `neighbours` nearest, itself included); delta the
    distance to the nearest denser token (of equal density the lower index is denser), for the
    densest the largest distance of all; distances are divided by sqrt(D). The score is
    log(density * delta). Memory is linear in N.

    among: (B, N) bool. Tokens that are False take no part, and score -inf. Default: all take part.
    """
    step = similarity.rows_at_once(x.shape[1] ** 2)
    scores = []
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        scores.append(_peaks(x[part], neighbours, None if among is None else among[part]))
    return torch.cat(scores)


def _peaks(x: Tensor, neighbours: int, among: Tensor | None) -> Tensor:
    b, n, _ = x.shape
    step = n if b > 1 else similarity.rows_at_once(n)
    place = torch.arange(n, device=x.device)
    sparse, widest = [], similarity.wide(x).new_zeros(b)
    for rows, table in similarity.distance_rows(x, step):
        table.diagonal(rows.start, 1, 2).zero_()
        if among is None:
            widest = torch.maximum(widest, table.amax((1, 2)))
        else:
            pairs = among[:, rows, None] & among[:, None]
            widest = torch.maximum(widest, table.masked_fill(~pairs, 0.0).amax((1, 2)))
            table.masked_fill_(~pairs, torch.inf)
        near = table.topk(min(neighbours, n), dim=2, largest=False).values
        known = near < torch.inf
        sparse.append(near.masked_fill(~known, 0.0).sum(2) / known.sum(2).clamp(min=1))
    sparsity = torch.cat(sparse, 1)  # -log density
    if among is not None:
        sparsity = sparsity.masked_fill(~among, torch.inf)
    deltas = []
    again = [(rows, table)] if step >= n else similarity.distance_rows(x, step)
    for rows, table in again:
        here, there = sparsity[:, rows, None], sparsity[:, None]
        denser = (there < here) | ((there == here) & (place < place[rows, None]))
        delta = table.masked_fill(~denser, torch.inf).amin(2)
        deltas.append(torch.where(denser.any(2), delta, widest[:, None]))
    score = torch.cat(deltas, 1).log() / 2 - sparsity
    return score if among is None else score.masked_fill(~among, -torch.inf)


def dpc_knn(x: Tensor, count: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """DPC-KNN clusters of x (B, N, D): centres (B, count), best score first, and assign (B, N).

    `neighbours` above `count` becomes min(3, max(count // 2, 1)), as in Chat-UniVi.
    """
    if neighbours > count:
        neighbours = min(3, max(count // 2, 1))
    centres = top(density_peaks(x, neighbours), count)
    return centres, to_closest(x, centres)
