"""Mistral Small 3.1 and later: a Pixtral encoder on packed images, 2 x 2 rows merged to a token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm.attention import AttentionReader, PackedReader
from vlm.families.base import ModelAdapter, UnknownFamily
from vlm.families.internvl import shuffled
from vlm.inputs import View, VisualInput


class Mistral3(ModelAdapter):
    """`Mistral3ForConditionalGeneration` with a Mistral decoder.

    The rows of an image are parted by a break token in the prompt, which is text and stays.
    """

    name = "mistral3"
    model_types = frozenset({"mistral3"})

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        kinds = (self.config.vision_config.model_type, self.config.text_config.model_type)
        if kinds != ("pixtral", "mistral"):
            raise UnknownFamily(
                f"a {self.name} model of {kinds[0]!r} and {kinds[1]!r} is not known: expected "
                "'pixtral' and 'mistral' (a 'ministral3' decoder scales queries by place)"
            )

    @property
    def vision_encoder(self) -> nn.Module:
        return self.core.vision_tower

    def vision_layers(self, kind: str) -> Sequence[Any]:
        return self.core.vision_tower.transformer.layers

    def reader(self, layer: Any) -> AttentionReader:
        return PackedReader(layer.attention)

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        down = self.config.spatial_merge_size
        patch = self.config.vision_config.patch_size * down
        sizes = torch.as_tensor(call["image_sizes"]).tolist()
        return [self._input(height // patch, width // patch, down**2) for height, width in sizes]

    def _input(self, height: int, width: int, pooled: int) -> VisualInput:
        count = height * width
        view = View((1, height, width), torch.arange(count))
        planes = ((1, 1, width),) * height  # the prompt has text between them
        return VisualInput(count, (view,), count * pooled, None, planes)

    def pool(self, inputs: Sequence[VisualInput], rows: Tensor) -> Tensor:
        return shuffled(inputs, rows, self.config.spatial_merge_size)

    def blank(self, kind: str) -> dict[str, Tensor]:
        side = self.config.vision_config.patch_size * self.config.spatial_merge_size
        sizes = torch.tensor([[side, side]])
        return {"pixel_values": torch.zeros(1, 3, side, side), "image_sizes": sizes}
