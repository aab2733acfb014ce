"""Positional preservation embedding (PPE): a merged token keeps the places of K of its members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from positions.channels import SlotLayout
from positions.errors import PositionError
from positions.layout import Segment, Text


@dataclass(frozen=True)
class PPE:
    """K = `slots` positions a merged token (PPE, arXiv 2510.22936, section 3).

    slots: K; must divide each of the model's rotary sections.
    layout: "contiguous" gives each slot a run of neighbouring frequencies, as in the paper;
        "strided" gives each slot the whole spectrum.
    repeat: let a token with fewer than K members repeat them, as in the paper; otherwise such a
        token is an error.
    """

    slots: int
    layout: SlotLayout = "contiguous"
    repeat: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.slots, int) or self.slots < 1:
            raise PositionError(f"PPE(slots={self.slots!r}): expected an integer of 1 or more")
        if self.layout not in ("contiguous", "strided"):
            raise PositionError(f"PPE(layout={self.layout!r}): expected 'contiguous' or 'strided'")

    def choose(
        self, row_of: Tensor, source: Tensor, rank: Tensor, distance: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The members whose places fill each token's slots.

        row_of: (S0,) int64, the token of each dense token, or -1.
        source: (S,) int64, the dense token that each token stands for; always in the first slot.
        rank: (S0,) int64, the place that each member had among those of the token that it belonged
            to before, so that tokens that are merged again each pass on their best members.
        distance: (S0,), how far each member is from its token's centre.
        weight: (S0,), which of two equally close members counts more.
        Returns (S, K) int64 indices of dense tokens: the K best members by rank, then distance,
        then weight, then index; where there are fewer than K, they follow once more in the order of
        their weight. And the new rank, (S0,).
        """
        counts = torch.bincount(row_of[row_of >= 0], minlength=len(source))
        short = (counts > 1) & (counts < self.slots)
        if not self.repeat and bool(short.any()):
            token = int(short.nonzero()[0])
            raise PositionError(
                f"PPE(slots={self.slots}): token {token} has {int(counts[token])} members; "
                f"expected at least {self.slots}, or repeat=True"
            )
        chosen = source[:, None].repeat(1, self.slots)
        members = (row_of >= 0).nonzero().squeeze(1)
        members = members[counts[row_of[members]] > 1]
        rows = row_of[members]
        before = torch.where(source[rows] == members, -1, rank[members])
        near, heavy = distance[members], -weight[members]
        best = _sorted(rows, before, near, heavy)
        first = torch.searchsorted(rows[best], torch.arange(len(source)))
        place = torch.arange(len(members)) - first[rows[best]]
        rank = rank.clone()
        rank[members[best]] = place
        taken = place < self.slots
        chosen[rows[best][taken], place[taken]] = members[best][taken]
        again = _sorted(rows, heavy, before, near)
        row = short.nonzero().squeeze(1)
        count, turn = counts[row][:, None], torch.arange(self.slots)
        if len(row):
            repeated = members[again[first[row][:, None] + (turn - count) % count]]
            chosen[row] = torch.where(turn < count, chosen[row], repeated)
        return chosen, rank


def _sorted(*keys: Tensor) -> Tensor:
    """Indices that sort by the first key, then the second, ...; ties keep their order."""
    return torch.from_numpy(np.lexsort([key.numpy() for key in reversed(keys)]))


def grid_places(segments: Sequence[Segment], group: Sequence[int]) -> Tensor:
    """Where the cells of several visual inputs are, on one canvas, whatever their scheme.

    group: the visual segments of one reduction. Steps of inputs of the same expert follow one
    another; experts lie over one another, their rows and columns scaled to the finest grid.
    Returns (cells, 3) float32 (t, h, w) in units of the finest grid's cells.
    """
    inputs = [segment for index in group if not isinstance(segment := segments[index], Text)]
    rows, columns = (max(item.shape[axis] for item in inputs) for axis in (1, 2))
    steps: dict[str | None, int] = {}
    places = []
    for item in inputs:
        t, h, w = item.shape
        first = steps.get(item.expert, 0)
        steps[item.expert] = first + t
        axes = (
            first + torch.arange(t, dtype=torch.float32),
            (torch.arange(h, dtype=torch.float32) + 0.5) * rows / h - 0.5,
            (torch.arange(w, dtype=torch.float32) + 0.5) * columns / w - 0.5,
        )
        places.append(torch.cartesian_prod(*axes).reshape(-1, 3))
    return torch.cat(places)
