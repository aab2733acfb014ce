"""Qwen2.5-VL: Qwen2-VL with attention in windows, whole frames in a few layers only."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from vlm.families.base import VisualInput
from vlm.families.qwen2_vl import Qwen2VL


class Qwen2_5VL(Qwen2VL):  # noqa: N801 - as the model is called
    """`Qwen2_5_VLForConditionalGeneration`.

    The tower's rows come window by window, in groups of one cell; scores are read where a whole
    frame attends to itself.
    """

    name = "qwen2_5_vl"
    model_types = frozenset({"qwen2_5_vl"})

    def scoring_layer(self, kind: str, index: int | None) -> int:
        wanted = super().scoring_layer(kind, index)
        whole = sorted(self.core.visual.fullatt_block_indexes)
        return min((layer for layer in whole if layer >= wanted), default=whole[-1])

    def pool(self, item: VisualInput, rows: Tensor) -> Tensor:
        visual = self.core.visual
        t, h, w = item.grid
        side = visual.spatial_merge_size
        grid = torch.tensor([[t, h * side, w * side]])
        order, _ = get_vision_window_index(grid, side, visual.window_size, visual.patch_size)
        cells = super().pool(item, rows)
        return cells[order.argsort().to(rows.device)]
