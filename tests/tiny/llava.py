"""LLaVA-1.5: 8 x 8 tokens an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlavaConfig

from tests.tiny.base import IMAGE_TOKEN, Case, View, clip, noise, text


class Llava(Case):
    name = "llava"
    model_class = "LlavaForConditionalGeneration"
    has_cls = True
    feature_layer = -2
    budget = 16

    def config(self, depth: int) -> Any:
        return LlavaConfig(
            vision_config=clip(32),
            text_config=LlamaConfig(**text(depth=depth)),
            image_token_id=IMAGE_TOKEN,
            vision_feature_layer=-2,
            image_seq_length=64,
        )

    def tokens(self, kind: str, variant: str) -> Tensor:
        return torch.full((64,), IMAGE_TOKEN)

    def media(self, kind: str, shown: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        return {"pixel_values": torch.stack([noise(3, 32, 32, seed=seed) for _, seed in shown])}

    def views(self, kind: str, variant: str) -> list[View]:
        return [((1, 8, 8), list(range(64)))]
