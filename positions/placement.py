"""The data of a plan: the dense layout, the tokens that are kept, and the positions of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from positions.errors import PositionError
from positions.layout import Segment
from positions.slots import PPE


@dataclass(frozen=True, eq=False)
class Placement:
    """The positions of one sequence: S tokens that stand for S0 >= S tokens of the dense layout.

    Attributes:
        segments: the layout.
        dense_positions: (S0, 3) float64, the position (t, h, w) of every dense token.
        source: (S,) int64, the dense token that each token stands for, ascending.
        row_of: (S0,) int64, the token that each dense token was merged into, or -1 where it was
            dropped.
        positions: (S, K, 3) float64, the K slots (t, h, w) of each token; K = 1 without slots.
        weights: (S, K) float32, the weight of the member that each slot is taken from.
        next_position: the position of the next text token.
        streams: the first position of each stream of the layout, and its next.
        slots: how the slots were chosen; None where each token has one position.
        rank: (S0,) int64, the rank of each member in that choice; None where there was none.
    """

    segments: tuple[Segment, ...]
    dense_positions: Tensor
    source: Tensor
    row_of: Tensor
    positions: Tensor
    weights: Tensor
    next_position: float
    streams: Mapping[str, tuple[float, float]]
    slots: PPE | None = None
    rank: Tensor | None = None

    def __len__(self) -> int:
        """S, the number of tokens that are kept."""
        return self.positions.shape[0]

    @cached_property
    def bounds(self) -> Tensor:
        """(segments + 1,) int64: the first dense token of each segment, and S0."""
        lengths = [0, *(segment.tokens for segment in self.segments)]
        return torch.tensor(lengths).cumsum(0)

    @property
    def segment_of(self) -> Tensor:
        """(S,) int64: the segment that each token belongs to."""
        return torch.bucketize(self.source, self.bounds[1:], right=True)

    @property
    def index_in_segment(self) -> Tensor:
        """(S,) int64: the dense token that each token stands for, counted in its segment."""
        return self.source - self.bounds[self.segment_of]

    @property
    def sizes(self) -> Tensor:
        """(S,) int64: how many dense tokens each token stands for."""
        return torch.bincount(self.row_of[self.row_of >= 0], minlength=len(self))

    def rows(self, segment: int) -> Tensor:
        """(n,) int64: the tokens that belong to `segment`, in order."""
        self.segment(segment)
        low, high = torch.searchsorted(self.source, self.bounds[segment : segment + 2])
        return torch.arange(int(low), int(high))

    def segment(self, index: int) -> Segment:
        """Segment `index`. Raises PositionError where there is none."""
        if not 0 <= index < len(self.segments):
            raise PositionError(f"segment {index}: expected 0 to {len(self.segments) - 1}")
        return self.segments[index]
