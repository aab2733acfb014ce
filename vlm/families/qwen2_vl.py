"""Qwen2-VL: a tower of any resolution on packed patches, 2 x 2 of them merged, M-RoPE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm.families.base import ModelAdapter, VisualInput
from vlm.families.taps import FusedTap, Tap


class Qwen2VL(ModelAdapter):
    """`Qwen2VLForConditionalGeneration`.

    The tower's rows come in groups of `spatial_merge_size` squared, one group a cell, cells in
    raster order. A frame (two pictures of a video) attends within itself.
    """

    name = "qwen2_vl"
    model_types = frozenset({"qwen2_vl"})
    kinds = ("image", "video")

    @property
    def tower(self) -> nn.Module:
        return self.core.visual

    @property
    def group(self) -> int:
        """Rows of the tower in a cell."""
        return int(self.core.visual.spatial_merge_size) ** 2

    def vision_layers(self, kind: str) -> Sequence[Any]:
        return self.core.visual.blocks

    def tap(self, layer: Any) -> Tap:
        return FusedTap(layer.attn)

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        side = self.core.visual.spatial_merge_size
        grids = call[f"{kind}_grid_thw"].tolist()
        return [VisualInput.plain((t, h // side, w // side), self.group) for t, h, w in grids]

    def pool(self, item: VisualInput, rows: Tensor) -> Tensor:
        return rows.unflatten(0, (-1, self.group)).mean(1)

    def blank(self, kind: str) -> dict[str, Tensor]:
        vision, side = self.config.vision_config, self.core.visual.spatial_merge_size
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        name = "pixel_values" if kind == "image" else "pixel_values_videos"
        grid = torch.tensor([[1, side, side]])
        return {name: torch.zeros(self.group, width), f"{kind}_grid_thw": grid}
