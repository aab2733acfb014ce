"""SmolVLM: SigLIP tiles, pixel shuffle, a text marker before each tile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm.attention import AttentionReader, ProjectionReader
from vlm.families.base import ModelAdapter
from vlm.families.internvl import shuffled
from vlm.inputs import VisualInput


class SmolVLM(ModelAdapter):
    """`SmolVLMForConditionalGeneration` and `Idefics3ForConditionalGeneration`.

    Tiles stand between text of their own and the model is not told which make an image, so each
    tile is a visual input. The frames of a video are images, with their time stamps in the text.
    """

    name = "smolvlm"
    model_types = frozenset({"smolvlm", "idefics3"})
    frames_are_images = True

    @property
    def language_model(self) -> Any:
        return self.core.text_model

    @property
    def vision_encoder(self) -> nn.Module:
        return self.core.vision_model

    def vision_layers(self, kind: str) -> Sequence[Any]:
        return self.core.vision_model.encoder.layers

    def reader(self, layer: Any) -> AttentionReader:
        return ProjectionReader(layer.self_attn, masked=True)

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        pixels, down = call["pixel_values"], self.config.scale_factor
        # As the model does: tiles of zeros pad a sample with fewer, and one at least is encoded.
        tiles = max(1, int((pixels != 0).flatten(2).any(-1).sum()))
        patch = self.config.vision_config.patch_size * down
        grid = (1, pixels.shape[-2] // patch, pixels.shape[-1] // patch)
        return [VisualInput.plain(grid, pooled=down**2)] * tiles

    def pool(self, inputs: Sequence[VisualInput], rows: Tensor) -> Tensor:
        return shuffled(inputs, rows, self.config.scale_factor)

    def blank(self, kind: str) -> dict[str, Tensor]:
        size = self.config.vision_config.image_size
        return {"pixel_values": torch.zeros(1, 1, 3, size, size)}
