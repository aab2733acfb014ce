"""DeepSeek-VL: SigLIP, an MLP, one square grid an image."""

from __future__ import annotations

from torch import nn

from vlm.families.base import ModelAdapter, UnknownFamily
from vlm.families.llava import Llava


class DeepseekVL(Llava):
    """`DeepseekVLForConditionalGeneration`. The hybrid one, with SAM beside, is not known."""

    name = "deepseek_vl"
    model_types = frozenset({"deepseek_vl"})
    resizes = False
    videos_by_frame = False

    def __init__(self, model: nn.Module) -> None:
        ModelAdapter.__init__(self, model)
        kind = self.config.vision_config.model_type
        if kind != "siglip_vision_model":
            raise UnknownFamily(
                f"a {self.name} model with a vision encoder of type {kind!r} is not known: "
                "expected 'siglip_vision_model'"
            )

    @property
    def vision_encoder(self) -> nn.Module:
        encoder: nn.Module = self.core.vision_model
        return encoder

    def projector_input(self, kind: str) -> nn.Module | None:
        aligner: nn.Module = self.core.aligner
        return aligner
