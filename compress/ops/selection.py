"""Indices: ranking, selecting and spreading them."""

from __future__ import annotations

import torch
from torch import Tensor


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


def on_device(values: list[int] | list[float] | Tensor, device: torch.device) -> Tensor:
    """Host values as a tensor on `device`, with no wait for a GPU to finish its work."""
    x = values if isinstance(values, Tensor) else torch.tensor(values)
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def spread(total: int, count: int, device: torch.device) -> Tensor:
    """(count,) indices at the middles of `count` equal parts of 0..total-1."""
    step = torch.arange(count, device=device)
    return ((2 * step + 1) * total) // max(1, 2 * count)


@torch.no_grad()
def by_quota(scores: Tensor, quota: Tensor, count: int, every: bool = True) -> Tensor:
    """(B, count) tokens: the highest scores of each frame, as many as its quota says.

    scores: (B, T, n); quota: (B, T) float, summing to about `count`. Whole parts of quotas are
    dealt first, then the largest remainders; what does not fit into a frame goes where the quota is
    exceeded least. A score of -inf is taken only when nothing else is left. every: the best token
    of each frame is taken first, if `count` allows. Exact, without a host sync.
    """
    order = scores.sort(dim=2, descending=True, stable=True).indices
    place = torch.arange(scores.shape[2], device=scores.device).expand_as(order)
    place = torch.empty_like(order).scatter_(2, order, place)  # rank within the frame
    wanted = quota[..., None] - place
    if every and count >= scores.shape[1]:
        wanted = wanted.masked_fill(place == 0, torch.inf)
    wanted = wanted.masked_fill(scores == -torch.inf, -torch.inf)
    return top(wanted.flatten(1), count)
