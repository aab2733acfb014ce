"""Qwen2.5-VL: Qwen2-VL with attention in windows, whole frames in a few layers only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from vlm.families.qwen2_vl import Qwen2VL
from vlm.inputs import Grid, VisualInput


class Qwen2_5VL(Qwen2VL):  # noqa: N801 - as the model is called
    """`Qwen2_5_VLForConditionalGeneration`.

    The encoder's rows come window by window, in groups of one token; scores are read where a
    whole frame attends to itself.
    """

    name = "qwen2_5_vl"
    model_types = frozenset({"qwen2_5_vl"})

    def scoring_layer(self, kind: str, index: int | None) -> int:
        wanted = super().scoring_layer(kind, index)
        whole = sorted(self.core.visual.fullatt_block_indexes)
        return min((layer for layer in whole if layer >= wanted), default=whole[-1])

    def pool(self, inputs: Sequence[VisualInput], rows: Tensor) -> Tensor:
        visual, orders, start = self.core.visual, [], 0
        sizes = (visual.spatial_merge_size, visual.window_size, visual.patch_size)
        for item in inputs:
            orders.append(_raster_order(item.grid, *sizes) + start)
            start += item.count
        order = torch.cat(orders).to(rows.device, non_blocking=True)
        return super().pool(inputs, rows)[order]


@lru_cache(maxsize=256)
def _raster_order(grid: Grid, side: int, window: int, patch: int) -> Tensor:
    """(N,) int64: for each token in raster order, its place among tokens window by window."""
    t, h, w = grid
    patches = torch.tensor([[t, h * side, w * side]])
    return get_vision_window_index(patches, side, window, patch)[0].argsort()
