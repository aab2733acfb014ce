"""Llama 4: tiles through an encoder with rotated queries and keys, 2 x 2 rows shuffled into a
token; a decoder whose layers see chunks, or everything and rotate nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm.attention import AttentionReader
from vlm.families.base import ModelAdapter, UnknownFamily
from vlm.families.complex_rotation import TurnedReader
from vlm.families.internvl import shuffled
from vlm.families.rotation import rotate_neighbours
from vlm.inputs import VisualInput


class Llama4(ModelAdapter):
    """`Llama4ForConditionalGeneration`.

    The model is its own core, and projects features after `get_image_features`. Tiles stand between
    tokens of their own, so each is a visual input. Layers of full attention rotate nothing and
    scale each query by its place among the tokens that they hold, here too (`query_scale`).
    """

    name = "llama4"
    model_types = frozenset({"llama4"})
    packs = False  # its chunks are counted along a row, whatever samples are in it

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        ratio = self.config.vision_config.pixel_shuffle_ratio
        if self.side % self.down or round(1 / ratio, 6) != self.down:
            raise UnknownFamily(
                f"pixel_shuffle_ratio={ratio} on {self.side} patches a side is not known: expected "
                "one over a divisor of the side"
            )

    @classmethod
    def serves(cls, model: Any) -> bool:
        kind = getattr(getattr(model, "config", None), "model_type", None)
        return kind in cls.model_types and hasattr(model, "multi_modal_projector")

    @property
    def core(self) -> Any:
        return self.model

    @property
    def language_model(self) -> Any:
        return self.core.language_model.model

    @property
    def vision_encoder(self) -> nn.Module:
        encoder: nn.Module = self.core.vision_model
        return encoder

    @property
    def side(self) -> int:
        """Patches along each side of a tile."""
        vision = self.config.vision_config
        return int(vision.image_size // vision.patch_size)

    @property
    def down(self) -> int:
        """Patches along each side of a token."""
        return round(1 / self.config.vision_config.pixel_shuffle_ratio)

    @property
    def image_tokens(self) -> int | None:
        return (self.side // self.down) ** 2

    def cos_sin(self, rotary: Any) -> tuple[Tensor, Tensor]:
        return rotary.real.repeat_interleave(2, -1), rotary.imag.repeat_interleave(2, -1)

    def rotate(self, attention: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if not attention.use_rope:
            return x
        turned = rotate_neighbours(x, cos, sin)
        return attention.qk_norm(turned) if hasattr(attention, "qk_norm") else turned

    def query_scale(self, attention: Any, places: Tensor) -> Tensor | None:
        if attention.use_rope or not attention.attn_temperature_tuning:
            return None
        steps = torch.floor((places.float() + 1) / attention.floor_scale)
        return torch.log1p(steps) * attention.attn_scale + 1

    def vision_layers(self, kind: str) -> Sequence[Any]:
        layers: Sequence[Any] = self.core.vision_model.model.layers
        return layers

    def reader(self, layer: Any) -> AttentionReader:
        return TurnedReader(layer.self_attn, has_class_token=True)

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        side = self.side // self.down
        tile = VisualInput.plain((1, side, side), pooled=self.down**2)
        return [tile] * len(call["pixel_values"])

    def pool(self, inputs: Sequence[VisualInput], rows: Tensor) -> Tensor:
        return shuffled(inputs, rows, self.down)

    def features_of(self, output: Any) -> Sequence[Tensor] | None:
        features: Sequence[Tensor] | None = getattr(output, "last_hidden_state", None)
        return features

    def received(self, output: Any) -> list[Tensor]:
        features = output.last_hidden_state
        return [self.core.multi_modal_projector(features.flatten(0, 1))]

    def blank(self, kind: str) -> dict[str, Tensor]:
        size = self.config.vision_config.image_size
        return {"pixel_values": torch.zeros(1, 3, size, size)}
