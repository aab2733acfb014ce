"""InternVL (2.5, 3): InternViT tiles, 2 x 2 rows shuffled into a token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm.attention import AttentionReader, ProjectionReader
from vlm.families.base import ModelAdapter, by_grid
from vlm.inputs import Grid, VisualInput


class InternVL(ModelAdapter):
    """`InternVLForConditionalGeneration`.

    The model is given tiles and not told which of them make an image; those that stand together in
    the prompt do. A video's frames are images.
    """

    name = "internvl"
    model_types = frozenset({"internvl"})
    one_run_one_input = True
    frames_are_images = True

    @property
    def vision_encoder(self) -> nn.Module:
        return self.core.vision_tower

    def vision_layers(self, kind: str) -> Sequence[Any]:
        return self.core.vision_tower.encoder.layer

    def reader(self, layer: Any) -> AttentionReader:
        return ProjectionReader(layer.attention, has_class_token=True)

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        tiles, _, height, width = call["pixel_values"].shape
        down = round(1 / self.config.downsample_ratio)
        patch_h, patch_w = self.config.vision_config.patch_size
        grid = (1, height // patch_h // down, width // patch_w // down)
        return [VisualInput.plain(grid, pooled=down**2)] * tiles

    def pool(self, inputs: Sequence[VisualInput], rows: Tensor) -> Tensor:
        return shuffled(inputs, rows, round(1 / self.config.downsample_ratio))

    def blank(self, kind: str) -> dict[str, Tensor]:
        return {"pixel_values": torch.zeros(1, 3, *self.config.vision_config.image_size)}


def shuffled(inputs: Sequence[VisualInput], rows: Tensor, down: int) -> Tensor:
    """Means over blocks of down x down rows: (R, ...) -> (T, ...), in raster order."""

    def pool(part: Tensor, grid: Grid) -> Tensor:
        return part.unflatten(0, (-1, down, grid[2], down)).mean((1, 3)).flatten(0, 1)

    return by_grid(inputs, rows, pool)
