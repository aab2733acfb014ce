"""Thinning by change, after FluxMem (arXiv 2603.02096, mid tier)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.stream.memories.base import MemoryPolicy, Older, largest

BINS = 128  # of Otsu's histogram of distances in [0, 2]


@dataclass(frozen=True)
class Change(MemoryPolicy):
    """Tokens that differ from their 3 x 3 neighbourhood one step before or after.

    In each step, those above Otsu's threshold of its distances are its changed tokens. These come
    first, the largest distances of all steps first; what is left of the count goes to the other
    tokens by distance.

    FluxMem drops all unchanged tokens at once and merges those of steps older than 256 into
    connected components. In a cache, whose tokens cannot be merged, the budget decides.

    same: cosine above which a token counts as unchanged whatever the threshold.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"change"})
    same: float = 0.8

    def __post_init__(self) -> None:
        self.check("same", -1 <= self.same <= 1, self.same, "a cosine, -1 to 1")

    def keep(self, older: Older, count: int) -> Tensor:
        distance = older.fields["change"].float().cpu()
        changed = torch.zeros_like(distance, dtype=torch.bool)
        for step in older.step.unique_consecutive():
            own = older.step == step
            changed[own] = distance[own] >= otsu(distance[own])
        changed &= distance > 1 - self.same
        return largest(distance + 4 * changed, count)


def otsu(distance: Tensor) -> Tensor:
    """() Otsu's threshold of (N,) distances in [0, 2]: that which parts them into two classes of
    the largest variance between them. 0 if all are alike."""
    count = torch.histc(distance, BINS, 0, 2)
    centre = (torch.arange(BINS) + 0.5) * (2 / BINS)
    below, total = count.cumsum(0), count.sum()
    mass = (count * centre).cumsum(0)
    above = total - below
    between = below * above * (mass / below - (mass[-1] - mass) / above).square()
    best = between.nan_to_num(0.0, 0.0, 0.0).argmax()
    split = bool((below[best] > 0) & (above[best] > 0))
    return (best + 1) * (2 / BINS) if split else distance.new_zeros(())
