"""Mistral Small 3.1 and later: a Pixtral tower on packed images, 2 x 2 rows merged into a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm.families.base import ModelAdapter, UnknownFamily, View, VisualInput
from vlm.families.internvl import shuffled
from vlm.families.taps import PackedTap, Tap


class Mistral3(ModelAdapter):
    """`Mistral3ForConditionalGeneration` with a Mistral decoder.

    The rows of an image are parted by a break token in the prompt, which is text and stays.
    """

    name = "mistral3"
    model_types = frozenset({"mistral3"})

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        towers = (self.config.vision_config.model_type, self.config.text_config.model_type)
        if towers != ("pixtral", "mistral"):
            raise UnknownFamily(
                f"a {self.name} model of {towers[0]!r} and {towers[1]!r} is not known: expected "
                "'pixtral' and 'mistral' (a 'ministral3' decoder scales queries by place)"
            )

    @property
    def tower(self) -> nn.Module:
        return self.core.vision_tower

    def vision_layers(self, kind: str) -> Sequence[Any]:
        return self.core.vision_tower.transformer.layers

    def tap(self, layer: Any) -> Tap:
        return PackedTap(layer.attention)

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        down = self.config.spatial_merge_size
        patch = self.config.vision_config.patch_size * down
        sizes = torch.as_tensor(call["image_sizes"]).tolist()
        return [self._input(height // patch, width // patch, down**2) for height, width in sizes]

    def _input(self, height: int, width: int, pooled: int) -> VisualInput:
        cells = torch.arange(height * width)
        rows = ((1, 1, width),) * height  # in the prompt there is text between them
        view = View((1, height, width), cells)
        return VisualInput(len(cells), (view,), len(cells) * pooled, None, rows)

    def pool(self, item: VisualInput, rows: Tensor) -> Tensor:
        _, height, width = item.grid
        return shuffled(rows, height, width, self.config.spatial_merge_size)

    def blank(self, kind: str) -> dict[str, Tensor]:
        side = self.config.vision_config.patch_size * self.config.spatial_merge_size
        sizes = torch.tensor([[side, side]])
        return {"pixel_values": torch.zeros(1, 3, side, side), "image_sizes": sizes}
