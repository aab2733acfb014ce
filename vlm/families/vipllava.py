"""VipLLaVA: LLaVA-1.5 on the features of several CLIP layers, side by side."""

from __future__ import annotations

from torch import nn

from vlm.families.base import ModelAdapter, UnknownFamily
from vlm.families.llava import Llava


class VipLlava(Llava):
    """`VipLlavaForConditionalGeneration`. Scores are read in the deepest of its feature layers."""

    name = "vipllava"
    model_types = frozenset({"vipllava"})
    resizes = False
    videos_by_frame = False
    has_class_token = True

    def __init__(self, model: nn.Module) -> None:
        ModelAdapter.__init__(self, model)
        kind = self.config.vision_config.model_type
        if kind != "clip_vision_model":
            raise UnknownFamily(
                f"a {self.name} model with a vision encoder of type {kind!r} is not known: its "
                "class token is dropped, so expected 'clip_vision_model'"
            )

    def feature_layer(self, kind: str) -> int:
        depth, given = len(self.vision_layers(kind)), self.config.vision_feature_layer
        layers = [given] if isinstance(given, int) else given
        return max(layer + depth if layer < 0 else max(layer - 1, 0) for layer in layers)
