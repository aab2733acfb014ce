"""SmolVLM: SigLIP tiles, pixel shuffle, a text marker before each tile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm.families.base import ModelAdapter, VisualInput
from vlm.families.internvl import shuffled
from vlm.families.taps import ProjectionTap, Tap


class SmolVLM(ModelAdapter):
    """`SmolVLMForConditionalGeneration`.

    Tiles stand between text of their own and nothing tells the model which make an image: each
    tile is a visual input. A video's frames are images.
    """

    name = "smolvlm"
    model_types = frozenset({"smolvlm"})

    @property
    def language_model(self) -> Any:
        return self.core.text_model

    @property
    def tower(self) -> nn.Module:
        return self.core.vision_model

    def vision_layers(self, kind: str) -> Sequence[Any]:
        return self.core.vision_model.encoder.layers

    def tap(self, layer: Any) -> Tap:
        return ProjectionTap(layer.self_attn, masked=True)

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        pixels, down = call["pixel_values"], self.config.scale_factor
        # As the model does: tiles of zeros pad a sample with fewer, and one at least is encoded.
        tiles = max(1, int((pixels != 0).flatten(2).any(-1).sum()))
        patch = self.config.vision_config.patch_size * down
        grid = (1, pixels.shape[-2] // patch, pixels.shape[-1] // patch)
        return [VisualInput.plain(grid, pooled=down**2)] * tiles

    def pool(self, item: VisualInput, rows: Tensor) -> Tensor:
        return shuffled(rows, item.grid[1], item.grid[2], self.config.scale_factor)

    def blank(self, kind: str) -> dict[str, Tensor]:
        size = self.config.vision_config.image_size
        return {"pixel_values": torch.zeros(1, 1, 3, size, size)}
