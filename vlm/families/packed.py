"""Encoders of packed patches (Qwen2-VL's and its kin) on some of a picture's cells alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)


@contextmanager
def some_cells(encoder: nn.Module, kept: Tensor) -> Iterator[None]:
    """While it lasts, the encoder runs on the patches of some cells, at the places that they have
    among all; of the other cells its output holds zeros.

    kept: (N,) bool, the cells of all inputs of one call, in raster order.
    """

    def cut(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        pixels, grid = args[0], kwargs["grid_thw"]
        rows = kept.repeat_interleave(len(pixels) // len(kept)).to(pixels.device)
        return (pixels[rows], *args[1:]), kwargs | _arguments(encoder, grid, kept, rows)

    def spread(_: nn.Module, args: Any, output: Any) -> Any:
        output.pooler_output = _spread(output.pooler_output, kept)
        layers = getattr(output, "deepstack_features", None)
        if layers is not None:
            output.deepstack_features = [_spread(one, kept) for one in layers]
        return output

    handles = [
        encoder.register_forward_pre_hook(cut, with_kwargs=True),
        encoder.register_forward_hook(spread),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _spread(features: Tensor, kept: Tensor) -> Tensor:
    """(N, D) from the rows of the kept cells."""
    dense = features.new_zeros(len(kept), features.shape[1])
    return dense.index_put((kept.to(features.device),), features)


def _arguments(encoder: Any, grid: Tensor, kept: Tensor, rows: Tensor) -> dict[str, Any]:
    """What the encoder works out from grids, for the rows that are left."""
    merge = encoder.spatial_merge_size
    ends = functional.pad(rows.cumsum(0, dtype=torch.int32), (1, 0))
    segments = get_vision_cu_seqlens(grid).long()
    found: dict[str, Any] = {
        "position_ids": get_vision_position_ids(grid, merge).to(rows.device)[rows],
        "cu_seqlens": ends[segments.to(ends.device)],
    }
    if hasattr(encoder, "window_size"):
        order, windows = get_vision_window_index(
            grid, merge, encoder.window_size, encoder.patch_size
        )
        here = kept.to(order.device)
        in_order, group = here[order], merge**2
        ends = functional.pad(in_order.cumsum(0, dtype=torch.int32), (1, 0)) * group
        found["window_index"] = (here.cumsum(0) - 1)[order[in_order]]
        cut = ends[(windows // group).long().to(ends.device)].to(windows.device)
        found["cu_window_seqlens"] = cut.unique_consecutive()
    if hasattr(encoder, "num_grid_per_side"):
        indices, weights = get_vision_interpolation_indices_and_weights(
            grid,
            num_grid_per_side=encoder.num_grid_per_side,
            mode=encoder.interpolation_mode,
            align_corners=encoder.interpolation_align_corners,
            spatial_merge_size=merge,
        )
        found["interp_indices"], found["interp_weights"] = indices[rows], weights[rows]
    return found
