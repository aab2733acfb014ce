"""What a reduction does to a plan: which tokens stay, and where they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from positions.errors import PositionError
from positions.layout import Text
from positions.slots import PPE, grid_places

if TYPE_CHECKING:
    from positions.plan import Plan

Key = int | tuple[int, ...]


class Reduction(Protocol):
    """One sample's reduction of one visual input, as `Plan.after` reads it."""

    @property
    def assign(self) -> Tensor:
        """(N,) int64: the row that each of the N present tokens went to, or -1."""

    @property
    def anchor(self) -> Tensor:
        """(M,) int64: the token that each row stands for, in ascending order."""


def targets(plan: Plan, reductions: Mapping[Any, Reduction]) -> tuple[Tensor, Tensor]:
    """(S,) bool, which tokens stay; (S,) int64, which of those each token goes to, or -1."""
    target = torch.arange(len(plan))
    seen: set[int] = set()
    for key, reduction in reductions.items():
        group = _group(key)
        for index in group:
            if index in seen or isinstance(plan.segment(index), Text):
                what = "named twice" if index in seen else "text, which is never reduced"
                raise PositionError(f"segment {index} is {what}; name each visual input once")
            seen.add(index)
        rows = torch.cat([plan.rows(index) for index in group])
        assign, anchor = _checked(reduction, key, rows)
        stays = assign >= 0
        target[rows] = -1
        target[rows[stays]] = rows[anchor[assign[stays]]]
    kept = target == torch.arange(len(plan))
    number = kept.cumsum(0) - 1
    return kept, follow(target, number, -1)


def follow(index: Tensor, values: Tensor, otherwise: float) -> Tensor:
    """values[index], and `otherwise` where the index is -1."""
    known = index >= 0
    out = torch.full(index.shape, otherwise, dtype=values.dtype)
    out[known] = values[index[known]]
    return out


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


def renumbered(plan: Plan) -> Plan:
    """One step a token in each stream, all axes equal; members stand where their token stands."""
    names = list(plan.streams)
    stream_of = torch.tensor([names.index(item.stream) for item in plan.segments]).long()
    stream = stream_of[plan.segment_of]
    numbers = torch.empty(len(plan), dtype=torch.float64)
    ends = {}
    for index, (name, (origin, _)) in enumerate(plan.streams.items()):
        mine = stream == index
        count = int(mine.sum())
        numbers[mine] = origin + torch.arange(count, dtype=torch.float64)
        ends[name] = (origin, origin + count)
    homes = follow(plan.row_of, numbers, torch.nan)
    return replace(
        plan,
        homes=homes[:, None].expand(-1, 3),
        positions=numbers[:, None, None].expand(-1, 1, 3),
        weights=torch.ones(1, 1).expand(len(plan), 1),
        next_position=ends[plan.segments[-1].stream][1] if plan.segments else plan.next_position,
        streams=ends,
    )


def slotted(
    plan: Plan,
    slots: PPE,
    keys: Sequence[Key],
    distance: Mapping[Any, Tensor],
    weight: Mapping[Any, Tensor],
) -> Plan:
    """Fill the slots of the tokens of these segments from the homes of their members."""
    far = torch.zeros(len(plan.homes))
    heavy = torch.ones(len(plan.homes))
    rank = torch.zeros(len(plan.homes), dtype=torch.int64) if plan.rank is None else plan.rank
    places = torch.zeros(len(plan.homes), 3)
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
        if key in weight:
            heavy[cells] = _per_cell("weight", weight[key], key, cells)
        if key in distance:
            far[cells] = _per_cell("distance", distance[key], key, cells)
            rank = rank.index_fill(0, cells, 0)  # the caller's measure rules alone
        else:
            places[cells] = grid_places(plan.segments, group)
            cells = cells[row_of[cells] >= 0]
            centres = plan.source[row_of[cells]]
            far[cells] = (places[cells] - places[centres]).square().sum(-1)
    if plan.positions.shape[1] not in (1, slots.slots):
        raise PositionError(
            f"PPE(slots={slots.slots}) after {plan.positions.shape[1]} slots in the same plan: "
            "expected the same number"
        )
    chosen, rank = slots.choose(row_of, plan.source, rank, far, heavy)
    positions, weights = plan.homes[chosen], heavy[chosen]
    if plan.positions.shape[1] > 1:
        others = torch.ones(len(plan), dtype=torch.bool)
        others[row_of[row_of >= 0]] = False
        positions[others], weights[others] = plan.positions[others], plan.weights[others]
    return replace(plan, positions=positions, weights=weights, rank=rank)


def _per_cell(name: str, values: Tensor, key: Key, cells: Tensor) -> Tensor:
    if values.shape != cells.shape or not bool(values.isfinite().all()):
        raise PositionError(
            f"{name} of segment {key} has shape {tuple(values.shape)}: expected one finite number "
            f"a dense cell, ({len(cells)},)"
        )
    return values.detach().cpu().float()


def _group(key: Key) -> tuple[int, ...]:
    return key if isinstance(key, tuple) else (key,)
