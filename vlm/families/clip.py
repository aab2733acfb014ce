"""Families with a CLIP or SigLIP encoder on square pictures of one size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm.attention import AttentionReader, ProjectionReader
from vlm.families.base import ModelAdapter


class ClipHost(ModelAdapter):
    """What these families have in common: where the encoder is, and how its attention is read.

    has_class_token: whether the encoder has a class token, as CLIP's has.
    """

    has_class_token: bool = False

    @property
    def vision_encoder(self) -> nn.Module:
        return self.core.vision_tower

    def vision_layers(self, kind: str) -> Sequence[Any]:
        encoder: Any = getattr(self.vision_encoder, "vision_model", self.vision_encoder)
        return encoder.encoder.layers

    def reader(self, layer: Any) -> AttentionReader:
        return ProjectionReader(layer.self_attn, self.has_class_token)

    def blank(self, kind: str) -> dict[str, Tensor]:
        size = self.config.vision_config.image_size
        return {"pixel_values": torch.zeros(1, 3, size, size)}
