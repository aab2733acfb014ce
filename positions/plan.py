"""Plan the positions of a layout, and of the tokens that a reduction keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from positions.checks import check
from positions.errors import PositionError
from positions.layout import Scheme, Segment, Text
from positions.placement import Placement
from positions.reduction import Reduction, follow, renumbered, slotted, targets
from positions.scaling import remedies
from positions.schemes import Sequential
from positions.slots import PPE


@dataclass(frozen=True, eq=False)
class Plan(Placement):
    """The positions of one sequence, from `plan` or `from_positions`.

    `next_position` does not depend on the reduction, unless the tokens are renumbered. See
    `Placement` for the attributes.
    """

    def after(
        self,
        reductions: Mapping[Any, Reduction],
        slots: PPE | None = None,
        renumber: bool = False,
        *,
        distance: Mapping[Any, Tensor] | None = None,
        weight: Mapping[Any, Tensor] | None = None,
    ) -> Plan:
        """Return the plan of the tokens that are kept after each named segment was reduced.

        Args:
            reductions: segment index to the reduction of the tokens that the segment has in *this*
                plan, as `compress.reduce` returns it for one input. A tuple of segment indices
                names the reduction of their tokens concatenated in that order. Reductions may
                follow one another.
            slots: the positions that merged tokens carry. By default as before (at first, one).
                Where merged tokens are merged again, slots are chosen from the union of their
                members, the best members of each first.
            renumber: number the tokens anew without gaps, one step each, all axes equal. By default
                each token keeps its anchor's position, and text keeps its own.
            distance: for the choice of slots, (N,), how far each of the segment's N dense tokens is
                from the centre of the token that it was merged into. By default the distance on the
                grid to the anchor.
            weight: for the choice of slots, (N,). Of two members at the same distance, the heavier
                comes first.

        Raises:
            PositionError: a reduction does not fit its segment, or is of more than one sample.
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
                    "slots keep the positions of the members of merged tokens, and renumber=True "
                    "discards them: expected one or the other"
                )
            return renumbered(reduced)
        if reduced.slots is None:
            return reduced
        return slotted(reduced, reduced.slots, list(reductions), distance or {}, weight or {})

    def check(self, config: Any, dtype: torch.dtype = torch.bfloat16) -> list[str]:
        """Return warnings about this plan on a model with this configuration (see `check`), and if
        it passes the model's window, what makes it fit and at what cost (see `remedies`)."""
        fitting = [f"to fit: {line}" for line in remedies(self, config, dtype)]
        return check(self, config, dtype) + fitting


def plan(
    segments: Sequence[Segment],
    scheme: Scheme = Sequential(),
    *,
    start: float = 0.0,
    streams: Mapping[str, float] | None = None,
    generator: torch.Generator | None = None,
) -> Plan:
    """Plan the positions of a dense layout.

    Args:
        segments: text runs and visual inputs in the order of the tokens.
        scheme: the scheme of the visual inputs that name none of their own.
        start: the position of the first text token. A second turn starts at `next_position`.
        streams: the first position of each named stream (`start` where none is given). Each stream
            counts on its own: tokens added to one do not move the tokens of another. Two streams
            from 0 are group position encoding (arXiv 2505.16983); a text stream that starts past
            the room for the video reserves positions. A model must be tuned for either.
        generator: the source of randomness of schemes that draw (`V2PE("random")`, `Randomised`).

    Raises:
        PositionError: the layout cannot be planned, or a scheme draws and there is no generator.
    """
    segments = tuple(segments)
    scheme = scheme.fitted(segments)
    dense_positions = np.empty((sum(segment.tokens for segment in segments), 3))
    origins = {segment.stream: float(start) for segment in segments} | dict(streams or {})
    cursors = dict(origins)
    cursor, first = float(start), 0
    for segment in segments:
        rows = dense_positions[first : first + segment.tokens]
        cursor = cursors[segment.stream]
        if isinstance(segment, Text):
            rows[:] = (cursor + np.arange(segment.length))[:, None]
            cursor += segment.length
        else:
            own = scheme if segment.scheme is None else segment.scheme.fitted(segments)
            placed = own.place(segment, cursor, generator)
            rows[:] = placed
            cursor = math.ceil(placed.max()) + 1.0
        cursors[segment.stream] = cursor
        first += segment.tokens
    ends = {name: (origin, cursors[name]) for name, origin in origins.items()}
    return _dense(segments, torch.from_numpy(dense_positions), cursor, ends)


def from_positions(
    positions: Tensor, segments: Sequence[Segment] | None = None, next_position: float | None = None
) -> Plan:
    """Return a plan of given positions, such as those of a model's `get_rope_index`.

    Args:
        positions: (S,), or (S, 3) for t, h and w.
        segments: the layout, without which the plan cannot be reduced.
        next_position: by default the largest position, rounded up, + 1.

    Raises:
        PositionError: the shape of `positions` does not fit the layout.
    """
    given = positions.detach().cpu().double()
    if given.ndim == 1:
        given = given[:, None].expand(-1, 3)
    segments = (Text(len(given)),) if segments is None else tuple(segments)
    planned = sum(segment.tokens for segment in segments)
    if given.ndim != 2 or given.shape[1] != 3 or len(given) != planned:
        raise PositionError(
            f"positions have shape {tuple(positions.shape)}: expected ({planned},) or ({planned}, "
            "3), one position for each token of the layout"
        )
    if next_position is None:
        next_position = math.ceil(given.max()) + 1.0 if len(given) else 0.0
    first = float(given[0].min()) if len(given) else 0.0
    streams = {segment.stream: (first, next_position) for segment in segments}
    return _dense(segments, given, next_position, streams)


def _dense(
    segments: tuple[Segment, ...],
    dense_positions: Tensor,
    next_position: float,
    streams: Mapping[str, tuple[float, float]],
) -> Plan:
    index = torch.arange(len(dense_positions))
    return Plan(
        segments=segments,
        dense_positions=dense_positions,
        source=index,
        row_of=index,
        positions=dense_positions[:, None],
        weights=torch.ones(1, 1).expand(len(index), 1),
        next_position=next_position,
        streams=streams,
    )
