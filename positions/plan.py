"""From a layout to the positions of every token, and from a reduction to those that stay."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from positions.errors import PositionError
from positions.layout import Segment, Text
from positions.schemes import Scheme, Sequential
from positions.slots import PPE, grid_places

Key = int | tuple[int, ...]


class Reduction(Protocol):
    """One sample's reduction of one visual input, as `Plan.after` reads it."""

    @property
    def assign(self) -> Tensor:
        """(N,) int64: the row that each of the N present tokens went to, or -1."""

    @property
    def anchor(self) -> Tensor:
        """(M,) int64: the token that each row stands for, in ascending order."""


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
    streams: the same for every stream of the layout.
    slots: how the slots were chosen, None where each token has one position.
    """

    segments: tuple[Segment, ...]
    homes: Tensor
    source: Tensor
    row_of: Tensor
    positions: Tensor
    weights: Tensor
    next_position: float
    streams: Mapping[str, float]
    slots: PPE | None = None

    def __len__(self) -> int:
        return self.positions.shape[0]

    @property
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
        self._segment(segment)
        low, high = torch.searchsorted(self.source, self.bounds[segment : segment + 2])
        return torch.arange(int(low), int(high))

    def after(
        self,
        reductions: Mapping[Key, Reduction],
        slots: PPE | None = None,
        renumber: bool = False,
        *,
        distance: Mapping[Key, Tensor] | None = None,
        weight: Mapping[Key, Tensor] | None = None,
    ) -> Plan:
        """The plan of what stays after each named segment was reduced.

        reductions: segment index (or several, for a reduction of their tokens taken together in
            that order) to a reduction of the tokens that the segment has in *this* plan, so that
            reductions can follow one another. Merged tokens that are merged again pass on the
            union of their members.
        slots: the positions that merged tokens carry; by default as before (one, at first).
        renumber: number the tokens anew without gaps, one step each, all axes equal. By default
            each token stands at its anchor's home and text stays where it stood.
        distance: for the choice of slots, how far each of the segment's N dense cells is from
            the centre of its token, (N,), by whatever measure the reduction used. By default the
            distance on the grid to the token's anchor.
        weight: for the choice of slots, (N,), the heavier of two equally close cells comes first.

        Raises PositionError where a reduction does not fit its segment.
        """
        kept, target = self._targets(reductions)
        reduced = replace(
            self,
            source=self.source[kept],
            row_of=torch.where(self.row_of >= 0, target[self.row_of], -1),
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
            return _renumbered(reduced)
        if reduced.slots is None:
            return reduced
        return _slotted(reduced, reduced.slots, list(reductions), distance or {}, weight or {})

    def _targets(self, reductions: Mapping[Key, Reduction]) -> tuple[Tensor, Tensor]:
        """(S,) bool, which tokens stay; (S,) int64, which of those each token goes to, or -1."""
        target = torch.arange(len(self))
        seen: set[int] = set()
        for key, reduction in reductions.items():
            group = _group(key)
            for index in group:
                if index in seen or isinstance(self._segment(index), Text):
                    what = "named twice" if index in seen else "text, which is never reduced"
                    raise PositionError(f"segment {index} is {what}; name each visual input once")
                seen.add(index)
            rows = torch.cat([self.rows(index) for index in group])
            assign, anchor = _checked(reduction, key, rows)
            stays = assign >= 0
            target[rows] = -1
            target[rows[stays]] = rows[anchor[assign[stays]]]
        kept = target == torch.arange(len(self))
        number = kept.cumsum(0) - 1
        return kept, torch.where(target >= 0, number[target], -1)

    def _segment(self, index: int) -> Segment:
        if not 0 <= index < len(self.segments):
            raise PositionError(f"segment {index}: expected 0 to {len(self.segments) - 1}")
        return self.segments[index]


def plan(
    segments: Sequence[Segment],
    scheme: Scheme = Sequential(),
    *,
    start: float = 0.0,
    generator: torch.Generator | None = None,
) -> Plan:
    """Plan the positions of a layout before anything is reduced.

    segments: text runs and visual inputs in the order of the tokens.
    scheme: how visual inputs that name no scheme of their own get their positions.
    start: the position of the first text token (a second turn goes on at `next_position`).
    generator: the source of the draws of random schemes.

    Raises PositionError on a layout that cannot be planned.
    """
    segments = tuple(segments)
    homes = np.empty((sum(segment.cells for segment in segments), 3))
    cursors: dict[str, float] = {"main": float(start)}
    first = 0
    cursor = cursors["main"]
    for segment in segments:
        cells = homes[first : first + segment.cells]
        cursor = cursors.setdefault(segment.stream, float(start))
        if isinstance(segment, Text):
            cells[:] = (cursor + np.arange(segment.length))[:, None]
            cursor += segment.length
        else:
            cells[:] = (segment.scheme or scheme).homes(segment, cursor, generator)
            cursor = math.ceil(cells.max()) + 1.0
        cursors[segment.stream] = cursor
        first += segment.cells
    places = torch.from_numpy(homes)
    index = torch.arange(len(places))
    return Plan(
        segments=segments,
        homes=places,
        source=index,
        row_of=index,
        positions=places[:, None],
        weights=torch.ones(1, 1).expand(len(places), 1),
        next_position=cursor,
        streams=cursors,
    )


def _checked(reduction: Reduction, key: Key, rows: Tensor) -> tuple[Tensor, Tensor]:
    """`assign` and `anchor` on the CPU, if they are a reduction of these tokens."""
    assign, anchor = reduction.assign.cpu(), reduction.anchor.cpu()
    if assign.shape != rows.shape:
        raise PositionError(
            f"segment {key}: the reduction's assign has shape {tuple(assign.shape)}, the segment "
            f"has {len(rows)} tokens; expected ({len(rows)},), one sample at a time"
        )
    fits = anchor.ndim == 1 and len(anchor) <= len(rows)
    fits = fits and bool(((assign >= -1) & (assign < len(anchor))).all())
    fits = fits and bool(((anchor >= 0) & (anchor < len(rows))).all())
    if not fits or not torch.equal(assign[anchor], torch.arange(len(anchor))):
        raise PositionError(
            f"segment {key}: assign and anchor do not fit; expected each of the {len(anchor)} rows "
            f"to have an anchor among the {len(rows)} tokens that is assigned to that row"
        )
    if not bool((anchor.diff() > 0).all()):
        raise PositionError(
            f"segment {key}: anchors are not in ascending order; sort the reduction's rows by "
            "anchor, so that tokens stay in the order of their places"
        )
    return assign, anchor


def _renumbered(plan: Plan) -> Plan:
    """One step a token, all axes equal; every member stands where its token stands."""
    offset = float(plan.homes[0, 0]) if len(plan.homes) else plan.next_position
    numbers = offset + torch.arange(len(plan), dtype=torch.float64)
    homes = torch.where(plan.row_of >= 0, numbers[plan.row_of], torch.nan)
    end = offset + len(plan)
    return replace(
        plan,
        homes=homes[:, None].expand(-1, 3),
        positions=numbers[:, None, None].expand(-1, 1, 3),
        weights=torch.ones(1, 1).expand(len(plan), 1),
        next_position=end,
        streams={**plan.streams, "main": end},
    )


def _slotted(
    plan: Plan,
    slots: PPE,
    keys: Sequence[Key],
    distance: Mapping[Key, Tensor],
    weight: Mapping[Key, Tensor],
) -> Plan:
    """Fill the slots of the tokens of these segments from the homes of their members."""
    far = torch.zeros(len(plan.homes), dtype=torch.float64)
    heavy = torch.ones(len(plan.homes), dtype=torch.float64)
    row_of = torch.full_like(plan.row_of, -1)
    bounds = plan.bounds.tolist()
    for key in keys:
        group = _group(key)
        cells = torch.cat([torch.arange(bounds[i], bounds[i + 1]) for i in group])
        if slots.slots > len(cells):
            raise PositionError(
                f"PPE(slots={slots.slots}) on segment {key} of {len(cells)} cells: expected no "
                "more slots than there are cells to fill them"
            )
        row_of[cells] = plan.row_of[cells]
        if key in distance:
            far[cells] = _per_cell("distance", distance[key], key, cells)
        else:
            places = torch.zeros(len(plan.homes), 3, dtype=torch.float64)
            places[cells] = grid_places(plan.segments, group)
            centres = plan.source[row_of[cells].clamp(min=0)]
            far[cells] = (places[cells] - places[centres]).square().sum(-1)
        if key in weight:
            heavy[cells] = _per_cell("weight", weight[key], key, cells)
    if plan.positions.shape[1] not in (1, slots.slots):
        raise PositionError(
            f"PPE(slots={slots.slots}) after {plan.positions.shape[1]} slots in the same plan: "
            "expected the same number"
        )
    chosen = slots.choose(row_of, plan.source, far, heavy)
    touched = torch.zeros(len(plan), dtype=torch.bool)
    touched[row_of[row_of >= 0]] = True
    return replace(
        plan,
        positions=torch.where(touched[:, None, None], plan.homes[chosen], plan.positions),
        weights=torch.where(touched[:, None], heavy[chosen].float(), plan.weights),
    )


def _per_cell(name: str, values: Tensor, key: Key, cells: Tensor) -> Tensor:
    if values.shape != cells.shape or not bool(values.isfinite().all()):
        raise PositionError(
            f"{name} of segment {key} has shape {tuple(values.shape)}: expected one finite number "
            f"a dense cell, ({len(cells)},)"
        )
    return values.detach().cpu().double()


def _group(key: Key) -> tuple[int, ...]:
    return key if isinstance(key, tuple) else (key,)
