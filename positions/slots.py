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

    def choose(self, row_of: Tensor, source: Tensor, distance: Tensor, weight: Tensor) -> Tensor:
        """The members whose places fill each token's slots.

        row_of: (S0,) int64, the token of each dense token, or -1.
        source: (S,) int64, the dense token that each token stands for (its centre).
        distance: (S0,), how far each member is from its token's centre.
        weight: (S0,), which of two equally close members counts more.
        Returns (S, K) int64 indices of dense tokens: the K closest members, ties to the heavier
        and then to the earlier; where there are fewer than K, the members in the order of their
        weight (then closeness) over again.
        """
        counts = torch.bincount(row_of[row_of >= 0], minlength=len(source))
        chosen = source[:, None].expand(-1, self.slots)
        short = (counts < self.slots) & (counts > 1)
        if not self.repeat and bool((counts[counts > 1] < self.slots).any()):
            row = int(short.nonzero()[0])
            raise PositionError(
                f"PPE(slots={self.slots}): token {row} has {int(counts[row])} members; expected at "
                f"least {self.slots}, or repeat=True"
            )
        if self.slots == 1 or not bool((counts > 1).any()):
            return chosen.clone()
        chosen = chosen.clone()
        members = (row_of >= 0).nonzero().squeeze(1)
        members = members[counts[row_of[members]] > 1]
        rows = row_of[members]
        near, heavy = distance[members].double().numpy(), -weight[members].double().numpy()
        # np.lexsort is stable and sorts by its last key first; members come in index order.
        close = torch.from_numpy(np.lexsort((heavy, near, rows.numpy())))
        first = torch.searchsorted(rows[close], torch.arange(len(source)))
        rank = torch.arange(len(members)) - first[rows[close]]
        taken = rank < self.slots
        chosen[rows[close][taken], rank[taken]] = members[close][taken]
        again = torch.from_numpy(np.lexsort((near, heavy, rows.numpy())))
        for row in short.nonzero().squeeze(1).split(65536):
            count = counts[row][:, None]
            turn = torch.arange(self.slots)[None]
            repeated = members[again[first[row][:, None] + (turn - count) % count]]
            chosen[row] = torch.where(turn < count, chosen[row], repeated)
        return chosen


def grid_places(segments: Sequence[Segment], group: Sequence[int]) -> Tensor:
    """Where the cells of several visual inputs are, on one canvas, whatever their scheme.

    group: the visual segments of one reduction. Steps of inputs of the same expert follow one
    another; experts lie over one another, their rows and columns scaled to the finest grid.
    Returns (cells, 3) float64 (t, h, w) in units of the finest grid's cells.
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
            first + torch.arange(t, dtype=torch.float64),
            (torch.arange(h, dtype=torch.float64) + 0.5) * rows / h - 0.5,
            (torch.arange(w, dtype=torch.float64) + 0.5) * columns / w - 0.5,
        )
        places.append(torch.cartesian_prod(*axes).reshape(-1, 3))
    return torch.cat(places)
