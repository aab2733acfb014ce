"""InternVL (2.5, 3): InternViT tiles, 2 x 2 rows shuffled into a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm.families.base import ModelAdapter, VisualInput
from vlm.families.taps import ProjectionTap, Tap


class InternVL(ModelAdapter):
    """`InternVLForConditionalGeneration`.

    The model is given tiles and not told which of them make an image; those that stand together in
    the prompt do. A video's frames are images.
    """

    name = "internvl"
    model_types = frozenset({"internvl"})
    one_run_one_input = True

    @property
    def tower(self) -> nn.Module:
        return self.core.vision_tower

    def vision_layers(self, kind: str) -> Sequence[Any]:
        return self.core.vision_tower.encoder.layer

    def tap(self, layer: Any) -> Tap:
        return ProjectionTap(layer.attention, has_cls=True)

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        tiles, _, height, width = call["pixel_values"].shape
        down = round(1 / self.config.downsample_ratio)
        patch_h, patch_w = self.config.vision_config.patch_size
        grid = (1, height // patch_h // down, width // patch_w // down)
        return [VisualInput.plain(grid, pooled=down**2)] * tiles

    def pool(self, item: VisualInput, rows: Tensor) -> Tensor:
        _, h, w = item.grid
        down = round(1 / self.config.downsample_ratio)
        return shuffled(rows, h, w, down)

    def blank(self, kind: str) -> dict[str, Tensor]:
        return {"pixel_values": torch.zeros(1, 3, *self.config.vision_config.image_size)}


def shuffled(rows: Tensor, h: int, w: int, down: int) -> Tensor:
    """Means over blocks of down x down rows: (h * down * w * down, C) -> (h * w, C)."""
    return rows.unflatten(0, (h, down, w, down)).mean((1, 3)).flatten(0, 1)
