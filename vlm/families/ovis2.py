"""Ovis2: AIMv2 tiles, s x s rows a token, each token a mixture of a visual vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vlm.attention import AttentionReader, ProjectionReader
from vlm.families.base import UnknownFamily
from vlm.families.clip import ClipHost
from vlm.families.internvl import shuffled
from vlm.inputs import VisualInput


class Ovis2(ClipHost):
    """`Ovis2ForConditionalGeneration`.

    Tiles stand between indicator tokens, which are text and stay, so each is a visual input.
    """

    name = "ovis2"
    model_types = frozenset({"ovis2"})

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        if self.side % self.down:
            raise UnknownFamily(
                f"hidden_stride={self.down} on {self.side} patches a side is not known: expected "
                "a stride that divides the side"
            )

    @property
    def side(self) -> int:
        """Patches along each side of a tile."""
        vision = self.config.vision_config
        return int(vision.image_size // vision.patch_size)

    @property
    def down(self) -> int:
        """Patches along each side of a token."""
        return int(self.config.vision_config.hidden_stride)

    @property
    def image_tokens(self) -> int | None:
        return (self.side // self.down) ** 2

    def vision_layers(self, kind: str) -> Sequence[Any]:
        layers: Sequence[Any] = self.core.vision_tower.transformer.encoder.layers
        return layers

    def reader(self, layer: Any) -> AttentionReader:
        return ProjectionReader(layer.attention)

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        side = self.side // self.down
        item = VisualInput.plain((1, side, side), pooled=self.down**2)
        return [item] * len(call["pixel_values"])

    def pool(self, inputs: Sequence[VisualInput], rows: Tensor) -> Tensor:
        return shuffled(inputs, rows, self.down)
