"""From a layout to the positions of every token, and from a reduction to those that stay."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from positions.checks import check
from positions.errors import PositionError
from positions.layout import Segment, Text
from positions.reduction import Reduction, follow, renumbered, slotted, targets
from positions.schemes import V2PE, Scheme, Sequential
from positions.slots import PPE


@dataclass(frozen=True, eq=False)
class Plan:
    """The positions of one sequence: S tokens that stand for S0 >= S tokens of the dense layout.

    segments: the layout that was planned.
    homes: (S0, 3) float64, the place (t, h, w) of every dense token.
    source: (S,) int64, the dense token that each token stands for, ascending.
    row_of: (S0,) int64, the token that each dense token went to, or -1 where it was dropped.
    positions: (S, K, 3) float64, the K slots (t, h, w) of each token; K = 1 without slots.
    weights: (S, K) float32, the weight of the member that each slot is taken from.
    next_position: where the next text token stands. It does not depend on the reduction.
    streams: where each stream of the layout starts, and where it goes on.
    slots: how the slots were chosen, None where each token has one position.
    rank: (S0,) int64, each member's place in that choice; None where there is none.
    """

    segments: tuple[Segment, ...]
    homes: Tensor
    source: Tensor
    row_of: Tensor
    positions: Tensor
    weights: Tensor
    next_position: float
    streams: Mapping[str, tuple[float, float]]
    slots: PPE | None = None
    rank: Tensor | None = None

    def __len__(self) -> int:
        return self.positions.shape[0]

    @cached_property
    def bounds(self) -> Tensor:
        """(segments + 1,) int64: the first dense token of each segment, and S0."""
        lengths = [0, *(segment.cells for segment in self.segments)]
        return torch.tensor(lengths).cumsum(0)

    @property
    def segment_of(self) -> Tensor:
        """(S,) int64: the segment that each token belongs to."""
        return torch.bucketize(self.source, self.bounds[1:], right=True)

    @property
    def cell_of(self) -> Tensor:
        """(S,) int64: the cell (or place in the run of text) that each token stands for."""
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

    def after(
        self,
        reductions: Mapping[Any, Reduction],
        slots: PPE | None = None,
        renumber: bool = False,
        *,
        distance: Mapping[Any, Tensor] | None = None,
        weight: Mapping[Any, Tensor] | None = None,
    ) -> Plan:
        """The plan of what stays after each named segment was reduced.

        reductions: segment index (or several, for a reduction of their tokens taken together in
            that order) to a reduction of the tokens that the segment has in *this* plan, so that
            reductions can follow one another.
        slots: the positions that merged tokens carry; by default as before (one, at first).
            Where merged tokens are merged again, the union of their members is chosen from, the
            best members of each first.
        renumber: number the tokens anew without gaps, one step each, all axes equal. By default
            each token stands at its anchor's home and text stays where it stood.
        distance: for the choice of slots, how far each of the segment's N dense cells is from
            the centre of its token, (N,), by whatever measure the reduction used. By default the
            distance on the grid to the token's anchor.
        weight: for the choice of slots, (N,), the heavier of two equally close cells comes first.

        Raises PositionError where a reduction does not fit its segment.
        """
        kept, target = targets(self, reductions)
        reduced = replace(
            self,
            source=self.source[kept],
            row_of=follow(self.row_of, target, -1),
            positions=self.positions[kept],
            weights=self.weights[kept],
            slots=slots or self.slots,
        )
        if renumber:
            if reduced.slots is not None:
                raise PositionError(
                    "slots keep the places that merged tokens came from, and renumber=True gives "
                    "them up: expected one or the other"
                )
            return renumbered(reduced)
        if reduced.slots is None:
            return reduced
        return slotted(reduced, reduced.slots, list(reductions), distance or {}, weight or {})

    def check(self, config: Any, dtype: torch.dtype = torch.bfloat16) -> list[str]:
        """What will go wrong on a model with this configuration, in words (see `check`)."""
        return check(self, config, dtype)

    def segment(self, index: int) -> Segment:
        """Segment `index`; PositionError where there is none."""
        if not 0 <= index < len(self.segments):
            raise PositionError(f"segment {index}: expected 0 to {len(self.segments) - 1}")
        return self.segments[index]


def plan(
    segments: Sequence[Segment],
    scheme: Scheme = Sequential(),
    *,
    start: float = 0.0,
    streams: Mapping[str, float] | None = None,
    generator: torch.Generator | None = None,
) -> Plan:
    """Plan the positions of a layout before anything is reduced.

    segments: text runs and visual inputs in the order of the tokens.
    scheme: how visual inputs that name no scheme of their own get their positions.
    start: the position of the first text token (a second turn goes on at `next_position`).
    streams: where each named stream starts (`start` where none is given). A stream counts on its
        own, so that tokens added to one move no token of another: group position encoding
        (arXiv 2505.16983) is two streams from 0, reserved positions are a text stream that starts
        past the room for the video. Such positions need a model that was tuned for them.
    generator: the source of the draws of random schemes.

    Raises PositionError on a layout that cannot be planned.
    """
    segments = tuple(segments)
    scheme = _fitted(scheme, segments)
    homes = np.empty((sum(segment.cells for segment in segments), 3))
    origins = {segment.stream: float(start) for segment in segments} | dict(streams or {})
    cursors = dict(origins)
    cursor, first = float(start), 0
    for segment in segments:
        cells = homes[first : first + segment.cells]
        cursor = cursors[segment.stream]
        if isinstance(segment, Text):
            cells[:] = (cursor + np.arange(segment.length))[:, None]
            cursor += segment.length
        else:
            own = segment.scheme
            own = scheme if own is None else _fitted(own, segments)
            places = own.homes(segment, cursor, generator)
            cells[:] = places
            cursor = math.ceil(places.max()) + 1.0
        cursors[segment.stream] = cursor
        first += segment.cells
    ends = {name: (origin, cursors[name]) for name, origin in origins.items()}
    return _whole(segments, torch.from_numpy(homes), cursor, ends)


def from_positions(
    positions: Tensor, segments: Sequence[Segment] | None = None, next_position: float | None = None
) -> Plan:
    """A plan of positions that were made elsewhere, such as by a model's `get_rope_index`.

    positions: (S,), or (S, 3) for t, h and w.
    segments: the layout, without which the plan cannot be reduced.
    next_position: by default the largest position (rounded up) + 1.
    """
    places = positions.detach().cpu().double()
    if places.ndim == 1:
        places = places[:, None].expand(-1, 3)
    segments = (Text(len(places)),) if segments is None else tuple(segments)
    planned = sum(segment.cells for segment in segments)
    if places.ndim != 2 or places.shape[1] != 3 or len(places) != planned:
        raise PositionError(
            f"positions have shape {tuple(positions.shape)}: expected ({planned},) or ({planned}, "
            "3), one place for each token of the layout"
        )
    if next_position is None:
        next_position = math.ceil(places.max()) + 1.0 if len(places) else 0.0
    first = float(places[0].min()) if len(places) else 0.0
    streams = {segment.stream: (first, next_position) for segment in segments}
    return _whole(segments, places, next_position, streams)


def _whole(
    segments: tuple[Segment, ...],
    homes: Tensor,
    cursor: float,
    streams: Mapping[str, tuple[float, float]],
) -> Plan:
    index = torch.arange(len(homes))
    return Plan(
        segments=segments,
        homes=homes,
        source=index,
        row_of=index,
        positions=homes[:, None],
        weights=torch.ones(1, 1).expand(len(homes), 1),
        next_position=cursor,
        streams=streams,
    )


def _fitted(scheme: Scheme, segments: Sequence[Segment]) -> Scheme:
    return scheme.fitted(segments) if isinstance(scheme, V2PE) else scheme
