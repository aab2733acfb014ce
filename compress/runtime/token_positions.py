"""Positions of the tokens that are left: the original ones, a scheme's, or renumbered ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from compress.ops import segment_median
from compress.runtime.dense_prompt import DensePrompt
from compress.runtime.layout import BatchLayout
from compress.runtime.prompt import PlacedInput
from compress.runtime.reduce_inputs import flat_assign
from compress.runtime.settings import Settings
from compress.runtime.tensors import gather
from compress.tokens import Reduction
from positions import PPE, Image, Plan, PositionTable, Video, plan
from positions.layout import layout_of


@dataclass(frozen=True)
class Placement:
    """A prompt before and after the reduction, as far as positions depend on it.

    dense: (B, S, 3) float64, where the stock model would place each dense token. index: (B, W)
    int64, the dense column of each token that is left; None where all are. start: tokens that
    the first layer was given before this prompt. begins: (B,) float64, where the first new token
    stands.
    """

    prompt: DensePrompt
    reductions: Sequence[Reduction]
    layout: BatchLayout
    dense: Tensor
    index: Tensor | None
    start: int
    begins: Tensor


def place(settings: Settings, placement: Placement) -> tuple[PositionTable, Tensor | None]:
    """The positions of the tokens that are left, and where the next text token stands.

    With it (B, S, 3) float64, where the dense tokens would stand; None if tokens are renumbered.
    """
    layout, dense = placement.layout, placement.dense
    ends = dense.masked_fill(~placement.prompt.mask[..., None], 0).amax((1, 2)).ceil() + 1
    if settings.keeps_original:
        left = dense if placement.index is None else gather(dense, placement.index)
        if settings.positions == "median" and placement.index is not None:
            left = _at_medians(placement, left)
        if settings.slots is None:
            return _table(settings, left[:, :, None], placement.start, ends), dense
        slotted = _slotted(settings.slots, placement, left)
        return _table(settings, slotted, placement.start, ends), dense
    if settings.positions == "compact":
        numbers = placement.begins[:, None] + layout.index_in_sample()
        positions = numbers[..., None, None].expand(-1, -1, 1, 3)
        ends = numbers.masked_fill(~layout.mask, 0).amax(1) + 1
        return _table(settings, positions, placement.start, ends), None
    on_host = reductions_on_host(placement.reductions)
    plans = _plans(settings, placement, [reduction.by_anchor() for reduction in on_host])
    table = _scheme_table(plans, placement, ends)
    planned = torch.zeros(dense.shape, dtype=dense.dtype)
    for one, (row, columns) in zip(plans, placement.prompt.host.sample_columns, strict=True):
        planned[row, columns] = one.dense_positions
    if settings.ordered:
        return table, planned
    return replace(table, positions=_in_own_order(table.positions, layout, on_host)), planned


def _scheme_table(plans: Sequence[Plan], placement: Placement, ends: Tensor) -> PositionTable:
    layout, dense = placement.layout, placement.dense
    if placement.prompt.host.samples is not None:
        return _packed(plans, layout, ends)
    table = PositionTable.from_plans(plans, layout.mask.cpu(), device=dense.device)
    return replace(table, start=placement.start)


def text_table(
    settings: Settings, positions: Tensor, start: int, following: Tensor
) -> PositionTable:
    """A table of new text tokens, all of one forward. positions: (B, q, 3) float64."""
    table = _table(settings, positions[:, :, None], start, following)
    return replace(table, in_order=positions.shape[1] == 1)


def _table(settings: Settings, positions: Tensor, start: int, following: Tensor) -> PositionTable:
    """positions: (B, q, K, 3) float64 of the tokens from index `start` on; K > 1 for slots."""
    slots = settings.slots if positions.shape[2] > 1 else None
    return PositionTable(
        positions,
        following,
        torch.zeros(len(positions), dtype=torch.bool, device=positions.device),
        "contiguous" if slots is None else slots.layout,
        start=start,
        own_angles=slots is not None,
        # Positions of the stock model have the axes that its rotary embedding reads.
        one_axis=settings.one_axis,
    )


def _in_own_order(
    positions: Tensor, layout: BatchLayout, reductions: Sequence[Reduction]
) -> Tensor:
    """Positions (B, W, K, 3) of tokens by ascending anchor, given to tokens in their own order."""
    ranks = [
        reduction.anchor[0].argsort(stable=True).argsort() + first
        for reduction, first in zip(reductions, layout.offsets, strict=True)
    ]
    rank = torch.cat(ranks).to(positions.device)
    own = positions[layout.rows, layout.columns[rank]]
    return positions.index_put((layout.rows, layout.columns), own)


def _plans(settings: Settings, placement: Placement, reductions: Sequence[Reduction]) -> list[Plan]:
    """A plan for each sample, in order, by the scheme that the user gave.

    reductions: on the host, rows by ascending anchor.
    """
    begins = placement.begins.tolist()
    plans = []
    for number, (row, columns) in enumerate(placement.prompt.host.sample_columns):
        own = [n for n, item in enumerate(placement.prompt.inputs) if item.sample == number]
        visual: dict[int, list[Image | Video]] = {}
        for n in own:
            item = placement.prompt.inputs[n]
            token = settings.adapter.placeholder(item.encoded.kind)
            visual.setdefault(token, []).extend(_segment(grid) for grid in item.input.planes)
        segments, keys = layout_of(placement.prompt.host.ids[row, columns].clone(), visual)
        each, reduced = iter(keys), {}
        for n in own:
            planes = [next(each) for _ in placement.prompt.inputs[n].input.planes]
            reduced[tuple(part for key in planes for part in key)] = reductions[n]
        scheme: Any = settings.positions
        planned = plan(segments, scheme, start=begins[row], generator=settings.generator)
        plans.append(planned.after(reduced, settings.slots))
    return plans


def _slotted(slots: PPE, placement: Placement, left: Tensor) -> Tensor:
    """(B, W, K, 3) float64: the stock positions of K members of each merged token, the one
    position of any other."""
    layout = placement.layout
    positions = left[:, :, None].repeat(1, 1, slots.slots, 1)
    on_host = reductions_on_host(placement.reductions)
    members, rows = [], []
    for item, reduction in zip(placement.prompt.inputs, on_host, strict=True):
        grid = _grid_places(item)
        assign, anchor = reduction.assign[0], reduction.anchor[0]
        far = (grid - grid[anchor[assign.clamp(min=0)]]).square().sum(-1)
        alike = torch.zeros_like(assign)
        chosen, _ = slots.choose(assign, anchor, alike, far, torch.ones_like(far))
        members.append(item.columns[chosen])
        rows.append(torch.full_like(chosen, item.row))
    row, column = (torch.cat(one).to(left.device) for one in (rows, members))
    positions[layout.rows, layout.columns] = placement.dense[row, column]
    return positions


def _at_medians(placement: Placement, left: Tensor) -> Tensor:
    """(B, W, 3) float64: `left` with visual tokens at the medians of their members' positions."""
    before, layout = placement.prompt.layout, placement.layout
    members = placement.dense[before.rows, before.columns]
    assign = torch.cat(flat_assign(placement.reductions))
    members = members.repeat(len(assign) // len(members), 1)
    medians = segment_median(members, assign.to(members.device), len(layout.rows))
    return left.index_put((layout.rows, layout.columns), medians)


def _grid_places(item: PlacedInput) -> Tensor:
    """(N, 3) float32: where the tokens of an input are on its grid; views follow one another."""
    places, first = torch.zeros(item.input.count, 3), 0
    for view in item.input.views:
        axes = [torch.arange(size, dtype=torch.float32) for size in view.grid]
        places[view.indices] = torch.cartesian_prod(axes[0] + first, axes[1], axes[2])
        first += view.grid[0]
    return places


def _packed(plans: Sequence[Plan], layout: BatchLayout, ends: Tensor) -> PositionTable:
    """The table of plans of samples that are packed one after another in rows."""
    each = PositionTable.from_plans(plans)
    flat = torch.cat([each.positions[n, : len(one)] for n, one in enumerate(plans)])
    mask = layout.mask.cpu()
    positions = flat.new_zeros(*mask.shape, *flat.shape[1:])
    positions[mask] = flat
    exact = each.exact.any().expand(len(mask)).to(ends.device)
    table = replace(each, positions=positions.to(ends.device), next_position=ends, exact=exact)
    return replace(table, start=0)


def _segment(grid: tuple[int, int, int]) -> Image | Video:
    return Image(grid[1:]) if grid[0] == 1 else Video(grid)


def reductions_on_host(reductions: Sequence[Reduction]) -> list[Reduction]:
    """The same maps on the host, in one copy, without features: (1, M, 0)."""
    parts = [
        part for reduction in reductions
        for part in (reduction.assign, reduction.anchor, reduction.size)
    ]  # fmt: skip
    if not parts:
        return []
    pieces = iter(torch.cat(parts, 1).cpu().split([part.shape[1] for part in parts], 1))
    return [
        Reduction(torch.empty(1, reduction.count, 0), next(pieces), next(pieces), next(pieces))
        for reduction in reductions
    ]
