"""Families with a SigLIP encoder on square pictures of one size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm.attention import AttentionReader, ProjectionReader
from vlm.families.base import ModelAdapter


class SiglipHost(ModelAdapter):
    """What these families have in common: where the encoder is, and how its attention is read."""

    @property
    def vision_encoder(self) -> nn.Module:
        return self.core.vision_tower

    def vision_layers(self, kind: str) -> Sequence[Any]:
        encoder: Any = getattr(self.vision_encoder, "vision_model", self.vision_encoder)
        return encoder.encoder.layers

    def reader(self, layer: Any) -> AttentionReader:
        return ProjectionReader(layer.self_attn)

    def blank(self, kind: str) -> dict[str, Tensor]:
        size = self.config.vision_config.image_size
        return {"pixel_values": torch.zeros(1, 3, size, size)}
