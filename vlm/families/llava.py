"""LLaVA-1.5: a CLIP or SigLIP tower, an MLP, a language model; one square grid an image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vlm.families.base import Family, Grid, MergePoint, ProjectionTap, Tap, UnknownFamily


class Llava(Family):
    """`LlavaForConditionalGeneration`, the embedded model included."""

    name = "llava"
    model_types = frozenset({"llava"})

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        config: Any = model.config
        kind = config.vision_config.model_type
        if kind not in ("clip_vision_model", "siglip_vision_model"):
            raise UnknownFamily(
                f"a llava model with a vision tower of type {kind!r} is not known; known: "
                "'clip_vision_model', 'siglip_vision_model'"
            )
        if config.vision_feature_select_strategy == "full" and kind == "clip_vision_model":
            raise UnknownFamily(
                "vision_feature_select_strategy='full' gives the class token to the language "
                "model as if it were a cell: only 'default' is supported"
            )
        self._has_cls = kind == "clip_vision_model"

    @property
    def placeholders(self) -> tuple[int, ...]:
        return (self.core.config.image_token_id,)

    @property
    def cells(self) -> int | None:
        vision: Any = self.core.config.vision_config
        return (vision.image_size // vision.patch_size) ** 2

    @property
    def tower(self) -> nn.Module:
        return self.core.vision_tower

    @property
    def merge_point(self) -> MergePoint:
        return MergePoint(self.core.multi_modal_projector, "input")

    def grids(self, features: Tensor, kwargs: Mapping[str, Any]) -> list[Grid]:
        images, cells, _ = features.shape
        side = math.isqrt(cells)
        if side * side != cells:
            raise ValueError(f"{cells} visual tokens an image are no square grid")
        return [(1, side, side)] * images

    def tap(self) -> Tap:
        tower: Any = getattr(self.tower, "vision_model", self.tower)
        layers = tower.encoder.layers
        index = self.core.config.vision_feature_layer
        last = index if isinstance(index, int) else index[-1]
        # hidden_states[i] is the output of layer i - 1 counted from the front, of i from the back.
        layer = layers[last if last < 0 else last - 1]
        return ProjectionTap(layer.self_attn, self._has_cls)
