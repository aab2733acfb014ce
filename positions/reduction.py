"""Apply a reduction to a plan: which tokens are kept, and their positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from positions.errors import PositionError
from positions.layout import Text
from positions.placement import Placement
from positions.slots import PPE, grid_positions

Key = int | tuple[int, ...]
P = TypeVar("P", bound=Placement)


class Reduction(Protocol):
    """The reduction of one visual input of N tokens to M, with or without a batch axis of one."""

    @property
    def assign(self) -> Tensor:
        """(N,) or (1, N) int64: the row that each token was merged into, or -1 if dropped."""

    @property
    def anchor(self) -> Tensor:
        """(M,) or (1, M) int64: the token that each row stands for, in ascending order."""


def targets(plan: Placement, reductions: Mapping[Any, Reduction]) -> tuple[Tensor, Tensor]:
    """Return (S,) bool, which tokens are kept, and (S,) int64, the kept token of each, or -1."""
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
    """Return values[index], and `otherwise` where the index is -1."""
    known = index >= 0
    out = torch.full(index.shape, otherwise, dtype=values.dtype)
    out[known] = values[index[known]]
    return out


def _checked(reduction: Reduction, key: Key, rows: Tensor) -> tuple[Tensor, Tensor]:
    """`assign` and `anchor` on the CPU, without a batch axis, if they are valid for these rows."""
    assign, anchor = reduction.assign.cpu(), reduction.anchor.cpu()
    if assign.ndim == 2 and len(assign) != 1:
        raise PositionError(
            f"segment {key}: the reduction's assign has shape {tuple(assign.shape)}, a batch of "
            f"{len(assign)}; expected the reduction of one sample, such as reduction.sample(0)"
        )
    if assign.ndim == anchor.ndim == 2 and len(anchor) == 1:
        assign, anchor = assign[0], anchor[0]
    if assign.shape != rows.shape:
        raise PositionError(
            f"segment {key}: the reduction's assign has shape {tuple(assign.shape)}, the segment "
            f"has {len(rows)} tokens; expected ({len(rows)},) or (1, {len(rows)})"
        )
    fits = anchor.ndim == 1 and len(anchor) <= len(rows)
    fits = fits and bool(((assign >= -1) & (assign < len(anchor))).all())
    fits = fits and bool(((anchor >= 0) & (anchor < len(rows))).all())
    if not fits or not torch.equal(assign[anchor], torch.arange(len(anchor))):
        raise PositionError(
            f"segment {key}: assign and anchor do not fit; expected each of the {anchor.numel()} "
            f"rows to have an anchor among the {len(rows)} tokens that is assigned to that row"
        )
    if not bool((anchor.diff() > 0).all()):
        raise PositionError(
            f"segment {key}: anchors are not in ascending order; sort the reduction's rows by "
            "anchor, so that tokens keep their order"
        )
    return assign, anchor


def renumbered(plan: P) -> P:
    """Return `plan` with one step per token in each stream, all axes equal.

    The dense tokens get the new position of the token that they were merged into (NaN if dropped).
    """
    names = list(plan.streams)
    stream_of = torch.tensor([names.index(item.stream) for item in plan.segments]).long()
    stream = stream_of[plan.segment_of]
    numbers = torch.empty(len(plan), dtype=torch.float64)
    ends = {}
    for index, (name, (origin, _)) in enumerate(plan.streams.items()):
        in_stream = stream == index
        count = int(in_stream.sum())
        numbers[in_stream] = origin + torch.arange(count, dtype=torch.float64)
        ends[name] = (origin, origin + count)
    dense_positions = follow(plan.row_of, numbers, torch.nan)
    return replace(
        plan,
        dense_positions=dense_positions[:, None].expand(-1, 3),
        positions=numbers[:, None, None].expand(-1, 1, 3),
        weights=torch.ones(1, 1).expand(len(plan), 1),
        next_position=ends[plan.segments[-1].stream][1] if plan.segments else plan.next_position,
        streams=ends,
    )


def slotted(
    plan: P,
    slots: PPE,
    keys: Sequence[Key],
    distance: Mapping[Any, Tensor],
    weight: Mapping[Any, Tensor],
) -> P:
    """Return `plan` with the slots of these segments' tokens filled from their members."""
    if plan.positions.shape[1] not in (1, slots.slots):
        raise PositionError(
            f"PPE(slots={slots.slots}) after {plan.positions.shape[1]} slots in the same plan: "
            "expected the same number"
        )
    count = len(plan.dense_positions)
    distances, weights, on_grid = torch.zeros(count), torch.ones(count), torch.zeros(count, 3)
    rank = torch.zeros(count, dtype=torch.int64) if plan.rank is None else plan.rank
    row_of = torch.full_like(plan.row_of, -1)
    bounds = plan.bounds.tolist()
    for key in keys:
        group = _group(key)
        dense = torch.cat([torch.arange(bounds[i], bounds[i + 1]) for i in group])
        if slots.slots > len(dense):
            raise PositionError(
                f"PPE(slots={slots.slots}) on segment {key} of {len(dense)} dense tokens: expected "
                "no more slots than dense tokens"
            )
        row_of[dense] = plan.row_of[dense]
        if key in weight:
            weights[dense] = _per_token("weight", weight[key], key, dense)
        if key in distance:
            distances[dense] = _per_token("distance", distance[key], key, dense)
            rank = rank.index_fill(0, dense, 0)  # the given distance alone decides
        else:
            on_grid[dense] = grid_positions(plan.segments, group)
            kept = dense[row_of[dense] >= 0]
            anchors = plan.source[row_of[kept]]
            distances[kept] = (on_grid[kept] - on_grid[anchors]).square().sum(-1)
    chosen, rank = slots.choose(row_of, plan.source, rank, distances, weights)
    positions, slot_weights = plan.dense_positions[chosen], weights[chosen]
    if plan.positions.shape[1] > 1:
        others = torch.ones(len(plan), dtype=torch.bool)
        others[row_of[row_of >= 0]] = False
        positions[others], slot_weights[others] = plan.positions[others], plan.weights[others]
    return replace(plan, positions=positions, weights=slot_weights, rank=rank)


def _per_token(name: str, values: Tensor, key: Key, dense: Tensor) -> Tensor:
    if values.shape != dense.shape or not bool(values.isfinite().all()):
        raise PositionError(
            f"{name} of segment {key} has shape {tuple(values.shape)}: expected one finite number "
            f"per dense token, ({len(dense)},)"
        )
    return values.detach().cpu().float()


def _group(key: Key) -> tuple[int, ...]:
    return key if isinstance(key, tuple) else (key,)
