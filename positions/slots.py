"""Positional preservation embedding (PPE): a merged token keeps the positions of K members."""

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
    """K = `slots` positions per merged token (PPE, arXiv 2510.22936, section 3).

    Args:
        slots: K; must divide each of the model's rotary sections.
        layout: "contiguous" gives each slot a run of neighbouring frequencies, as in the paper;
            "strided" gives each slot the whole spectrum.
        repeat: whether a token with fewer than K members repeats them, as in the paper. Otherwise
            such a token raises PositionError.
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
        """Choose the members whose positions fill each token's slots.

        Args:
            row_of: (S0,) int64, the token that each dense token was merged into, or -1.
            source: (S,) int64, the dense token that each token stands for; always the first slot.
            rank: (S0,) int64, the rank of each member in the token that it belonged to before, so
                that tokens that are merged again each pass on their best members.
            distance: (S0,), the distance of each member to the centre of its token.
            weight: (S0,). Of two members at the same distance, the heavier comes first.

        Returns (S, K) int64 indices of dense tokens, the K best members by rank, then distance,
        then weight, then index; where there are fewer than K, they are repeated in order of weight.
        And the new rank, (S0,).
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
        old_rank = torch.where(source[rows] == members, -1, rank[members])
        member_distance, descending_weight = distance[members], -weight[members]
        best = _sorted(rows, old_rank, member_distance, descending_weight)
        first = torch.searchsorted(rows[best], torch.arange(len(source)))
        new_rank = torch.arange(len(members)) - first[rows[best]]
        rank = rank.clone()
        rank[members[best]] = new_rank
        fits = new_rank < self.slots
        chosen[rows[best][fits], new_rank[fits]] = members[best][fits]
        by_weight = _sorted(rows, descending_weight, old_rank, member_distance)
        row = short.nonzero().squeeze(1)
        count, slot = counts[row][:, None], torch.arange(self.slots)
        if len(row):
            repeated = members[by_weight[first[row][:, None] + (slot - count) % count]]
            chosen[row] = torch.where(slot < count, chosen[row], repeated)
        return chosen, rank


def _sorted(*keys: Tensor) -> Tensor:
    """Indices that sort by the first key, then the second, and so on. The sort is stable."""
    return torch.from_numpy(np.lexsort([key.numpy() for key in reversed(keys)]))


def grid_positions(segments: Sequence[Segment], group: Sequence[int]) -> Tensor:
    """Where the tokens of several visual inputs are on one common grid, whatever their scheme.

    Args:
        group: the visual segments of one reduction. The steps of inputs of the same expert follow
            one another. Experts overlap; their rows and columns are scaled to the finest grid.

    Returns (tokens, 3) float32 (t, h, w) in cells of the finest grid.
    """
    inputs = [segment for index in group if not isinstance(segment := segments[index], Text)]
    rows, columns = (max(item.shape[axis] for item in inputs) for axis in (1, 2))
    steps: dict[str | None, int] = {}
    parts = []
    for item in inputs:
        t, h, w = item.shape
        first = steps.get(item.expert, 0)
        steps[item.expert] = first + t
        axes = (
            first + torch.arange(t, dtype=torch.float32),
            (torch.arange(h, dtype=torch.float32) + 0.5) * rows / h - 0.5,
            (torch.arange(w, dtype=torch.float32) + 0.5) * columns / w - 0.5,
        )
        parts.append(torch.cartesian_prod(*axes).reshape(-1, 3))
    return torch.cat(parts)
