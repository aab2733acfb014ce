"""Where the tokens that are left stand: at home, by a scheme, or a merged one at several places."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compress.runtime.rows import Rows
from compress.runtime.stage import Placed
from compress.runtime.state import State, table_of
from compress.tokens import Reduction
from positions import PPE, Image, PositionTable, Scheme, Video, plan
from positions.layout import layout_of

if TYPE_CHECKING:
    from compress.runtime.attach import Compression


def positions_after(
    owner: Compression,
    items: list[Placed],
    rows: Rows,
    new_rows: Rows,
    ids: Tensor,
    reductions: list[Reduction],
    state: State | None,
    dense: Tensor,
    homes: Tensor,
    ends: Tensor,
    past: int,
) -> PositionTable:
    """Positions of the tokens that are left. dense, homes: stock ones of all, and of those left."""
    start = past if state is None else state.length
    if owner.positions == "original":
        if owner.slots is None:
            return table_of(homes[:, :, None], start, ends)
        several = _slotted(owner.slots, items, new_rows, reductions, dense, homes)
        return table_of(several, start, ends, layout=owner.slots.layout)
    begins = torch.full_like(ends, past) if state is None else state.following
    if owner.positions == "compact":
        places = begins[:, None] + new_rows.place_in_sample().to(ends.device)
        return table_of(places[..., None, None].expand(-1, -1, 1, 3), start, places.amax(1) + 1)
    plans = _planned(owner, items, rows, ids, reductions, begins)
    if new_rows.samples is not None:
        return _relaid(plans, new_rows, ends)
    table = PositionTable.from_plans(plans, new_rows.mask, device=ends.device)
    return table_of(table.positions, start, table.next_position, table.exact, layout=table.layout)


def _planned(
    owner: Compression,
    items: list[Placed],
    rows: Rows,
    ids: Tensor,
    reductions: list[Reduction],
    begins: Tensor,
) -> list[Any]:
    """A plan for each sample, in order, by the scheme that the user gave."""
    scheme: Scheme = owner.positions  # type: ignore[assignment]
    plans = []
    every = [(row, places) for row in range(len(ids)) for places in rows.each(row)]
    for row, places in every:
        real = ids[row].cpu()[places].clone()
        mine = [
            n
            for n, item in enumerate(items)
            if item.row == row and len(rows.beside(row, places, item.slots[:1]))
        ]
        visual: dict[int, list[Image | Video]] = {}
        for n in mine:
            item = items[n]
            kind = owner.adapter.placeholder(item.encoded.kind)
            visual.setdefault(kind, []).extend(_segment(grid) for grid in item.input.planes)
        segments, keys = layout_of(real, visual)
        each, reduced = iter(keys), {}
        for n in mine:
            planes = [next(each) for _ in items[n].input.planes]
            reduced[tuple(part for key in planes for part in key)] = _on_host(reductions[n])
        made = plan(segments, scheme, start=float(begins[row]))
        plans.append(made.after(reduced, owner.slots))
    return plans


def _slotted(
    slots: PPE,
    items: list[Placed],
    new_rows: Rows,
    reductions: list[Reduction],
    dense: Tensor,
    homes: Tensor,
) -> Tensor:
    """(B, M, K, 3) float64: the stock places of K members for each merged token, else its own."""
    found = homes[:, :, None].repeat(1, 1, slots.slots, 1)
    standing = [places for row in new_rows.slots for places in row]
    for item, reduction, places in zip(items, reductions, standing, strict=True):
        made = _on_host(reduction)
        assign, anchor = made.assign, made.anchor
        at = _canvas(item)
        far = (at - at[anchor[assign.clamp(min=0)]]).square().sum(-1)
        every = torch.zeros_like(assign)
        chosen, _ = slots.choose(assign, anchor, every, far, torch.ones_like(far))
        own = dense[item.row, item.slots.to(dense.device)]
        found[item.row, places.to(found.device)] = own[chosen.to(found.device)]
    return found


def _canvas(item: Placed) -> Tensor:
    """(N, 3) float32: where the cells of an input are on its grid; its views follow one another."""
    found, first = torch.zeros(item.input.count, 3), 0
    for view in item.input.views:
        axes = [torch.arange(size, dtype=torch.float32) for size in view.grid]
        found[view.indices] = torch.cartesian_prod(axes[0] + first, axes[1], axes[2])
        first += view.grid[0]
    return found


def _relaid(plans: list[Any], rows: Rows, ends: Tensor) -> PositionTable:
    """The table of plans of samples that are packed one after another in rows."""
    each = PositionTable.from_plans(plans)
    flat = torch.cat([each.positions[n, : len(plan)] for n, plan in enumerate(plans)])
    positions = flat.new_zeros(*rows.mask.shape, *flat.shape[1:])
    positions[rows.mask] = flat
    exact = each.exact.any().expand(len(rows.mask))
    device = ends.device
    return table_of(positions.to(device), 0, ends, exact.to(device), layout=each.layout)


def _segment(grid: tuple[int, int, int]) -> Image | Video:
    return Image(grid[1:]) if grid[0] == 1 else Video(grid)


def _on_host(reduction: Reduction) -> Reduction:
    assign, anchor, size = (
        x[0].cpu() for x in (reduction.assign, reduction.anchor, reduction.size)
    )
    return Reduction(reduction.features[0], assign, anchor, size)
