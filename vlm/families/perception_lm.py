"""PerceptionLM: tiles through a Perception Encoder of timm, an MLP, mean pooling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlm.attention import AttentionReader
from vlm.families.base import UnknownFamily
from vlm.families.clip import ClipHost
from vlm.families.internvl import shuffled
from vlm.families.timm_encoder import TimmReader
from vlm.inputs import VisualInput


class PerceptionLM(ClipHost):
    """`PerceptionLMForConditionalGeneration`. The tiles of an image are views of one input, and
    follow one another in the prompt."""

    name = "perception_lm"
    model_types = frozenset({"perception_lm"})
    refuses: ClassVar[Mapping[str, str]] = {
        "video": "its core encodes them by `get_image_features`, as images"
    }

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        encoder: Any = self.vision_encoder.timm_model
        first, dropped = getattr(encoder, "num_prefix_tokens", None), self.config
        if first != int(dropped.vision_use_cls_token) or not hasattr(encoder, "blocks"):
            raise UnknownFamily(
                f"vision_use_cls_token={dropped.vision_use_cls_token} on "
                f"{type(encoder).__name__!r} with {first} tokens before the patches is not known: "
                "expected a Perception Encoder of timm, whose class token is dropped if it has one"
            )
        side, down = self.side, self.down
        if side % down:
            raise UnknownFamily(
                f"projector_pooling_ratio={down} on {side} patches a side is not known: expected "
                "a ratio that divides the side"
            )

    @property
    def side(self) -> int:
        """Patches along each side of a tile."""
        encoder: Any = self.vision_encoder.timm_model
        return int(encoder.patch_embed.grid_size[0])

    @property
    def down(self) -> int:
        """Patches along each side of a token."""
        return int(self.config.projector_pooling_ratio)

    def vision_layers(self, kind: str) -> Sequence[Any]:
        encoder: Any = self.vision_encoder.timm_model
        layers: Sequence[Any] = encoder.blocks
        return layers

    def reader(self, layer: Any) -> AttentionReader:
        return TimmReader(layer.attn)

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        images, tiles = call["pixel_values"].shape[:2]
        return [VisualInput.join([self._tile] * tiles)] * images

    @property
    def _tile(self) -> VisualInput:
        side = self.side // self.down
        return VisualInput.plain((1, side, side), pooled=self.down**2)

    def pool(self, inputs: Sequence[VisualInput], rows: Tensor) -> Tensor:
        return shuffled([self._tile for item in inputs for _ in item.views], rows, self.down)

    def blank(self, kind: str) -> dict[str, Tensor]:
        encoder: Any = self.vision_encoder.timm_model
        return {"pixel_values": torch.zeros(1, 1, 3, *encoder.patch_embed.img_size)}
