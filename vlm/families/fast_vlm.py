"""FastVLM: a convolutional encoder of timm with attention in its last stage, an MLP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm.attention import AttentionReader
from vlm.families.base import UnknownFamily
from vlm.families.clip import ClipHost
from vlm.families.timm_encoder import TimmReader
from vlm.inputs import VisualInput


class FastVLM(ClipHost):
    """`FastVlmForConditionalGeneration`. All vision layers that can score are of the last stage."""

    name = "fast_vlm"
    model_types = frozenset({"fast_vlm"})

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        encoder = self.vision_encoder.timm_model
        stages: Any = getattr(encoder, "stages", None)
        if stages is None or not hasattr(stages[-1].blocks[-1].token_mixer, "qkv"):
            raise UnknownFamily(
                f"a {self.name} model with a vision encoder of type {type(encoder).__name__!r} is "
                "not known: expected a FastViT with attention in its last stage, such as "
                "'fastvit_mci3'"
            )

    @property
    def patch(self) -> int:
        """Pixels along each side of a token."""
        encoder: Any = self.vision_encoder.timm_model
        return int(encoder.feature_info[-1]["reduction"])

    def vision_layers(self, kind: str) -> Sequence[Any]:
        encoder: Any = self.vision_encoder.timm_model
        layers: Sequence[Any] = encoder.stages[-1].blocks
        return layers

    def reader(self, layer: Any) -> AttentionReader:
        return TimmReader(layer.token_mixer)

    def projector_input(self, kind: str) -> nn.Module | None:
        projector: nn.Module = self.core.multi_modal_projector
        return projector

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        images, _, *sides = call["pixel_values"].shape
        height, width = (-(-side // self.patch) for side in sides)
        return [VisualInput.plain((1, height, width))] * images

    def blank(self, kind: str) -> dict[str, Tensor]:
        return {"pixel_values": torch.zeros(1, 3, self.patch, self.patch)}
