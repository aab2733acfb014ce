"""LLaVA-1.5: a CLIP or SigLIP tower, an MLP, a language model; one square grid an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from vlm.families.base import ModelAdapter, UnknownFamily, VisualInput
from vlm.families.resize import smaller_pictures
from vlm.families.taps import ProjectionTap, Tap


class Llava(ModelAdapter):
    """`LlavaForConditionalGeneration`, the embedded model included."""

    name = "llava"
    model_types = frozenset({"llava"})
    resizes = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        kind = self.config.vision_config.model_type
        if kind not in ("clip_vision_model", "siglip_vision_model"):
            raise UnknownFamily(
                f"a {self.name} model with a vision tower of type {kind!r} is not known; known: "
                "'clip_vision_model', 'siglip_vision_model'"
            )
        self.has_cls = kind == "clip_vision_model"
        if (self.config.vision_feature_select_strategy == "default") != self.has_cls:
            raise UnknownFamily(
                f"vision_feature_select_strategy={self.config.vision_feature_select_strategy!r} on "
                f"{kind!r}: expected 'default' where there is a class token, which is no cell, and "
                "'full' where there is none"
            )

    @property
    def side(self) -> int:
        """Cells along each side of a tile."""
        vision = self.config.vision_config
        return int(vision.image_size // vision.patch_size)

    @property
    def cells(self) -> int | None:
        return self.side**2

    @property
    def tower(self) -> nn.Module:
        return self.core.vision_tower

    def vision_layers(self, kind: str) -> Sequence[Any]:
        tower: Any = getattr(self.tower, "vision_model", self.tower)
        return tower.encoder.layers

    def tap(self, layer: Any) -> Tap:
        return ProjectionTap(layer.self_attn, self.has_cls)

    def merge_point(self, kind: str) -> nn.Module | None:
        return self.core.multi_modal_projector

    def resized(self, side: int, block_of: Tensor) -> AbstractContextManager[None]:
        pixels, prefix = side * self.config.vision_config.patch_size, int(self.has_cls)

        def over(x: Tensor | None) -> Tensor | None:
            if x is None:  # a layer whose states nobody asked for
                return None
            return torch.cat([x[:, :prefix], x[:, prefix:][:, block_of.to(x.device)]], dim=1)

        def spread(output: Any) -> Any:
            output.last_hidden_state = over(output.last_hidden_state)
            if output.hidden_states is not None:
                output.hidden_states = tuple(map(over, output.hidden_states))
            return output

        return smaller_pictures(self.tower, (pixels, pixels), self.tower, spread)

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        images, _, height, width = call["pixel_values"].shape
        patch = self.config.vision_config.patch_size
        return [VisualInput.plain((1, height // patch, width // patch))] * images

    def blank(self, kind: str) -> dict[str, Tensor]:
        size = self.config.vision_config.image_size
        return {"pixel_values": torch.zeros(1, 3, size, size)}
