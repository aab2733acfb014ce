"""LLaVA-NeXT: tiles of 4 x 4 tokens; a square of 2 x 2 crops, and a strip of 1 x 2, unpadded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlavaNextConfig

from tests.tiny.base import IMAGE_TOKEN, Case, View, clip, noise, text

SIZES = {"a": (30, 30), "b": (10, 32)}
TILES = {"a": 5, "b": 3}
CROPS = {"a": (8, 8), "b": (2, 8)}


class LlavaNext(Case):
    name = "llava_next"
    model_class = "LlavaNextForConditionalGeneration"
    has_cls = True
    feature_layer = -2
    budget = 14

    def config(self, depth: int) -> Any:
        return LlavaNextConfig(
            vision_config=clip(16),
            text_config=LlamaConfig(**text(depth=depth)),
            image_token_id=IMAGE_TOKEN,
            image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
            vision_feature_layer=-2,
            image_seq_length=16,
        )

    def tokens(self, kind: str, variant: str) -> Tensor:
        height, width = CROPS[variant]
        return torch.full((16 + height * (width + 1),), IMAGE_TOKEN)

    def media(self, kind: str, shown: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        most = max(TILES[variant] for variant, _ in shown)
        pixels = torch.zeros(len(shown), most, 3, 16, 16)
        for number, (variant, seed) in enumerate(shown):
            pixels[number, : TILES[variant]] = noise(TILES[variant], 3, 16, 16, seed=seed)
        sizes = torch.tensor([SIZES[variant] for variant, _ in shown])
        return {"pixel_values": pixels, "image_sizes": sizes}

    def views(self, kind: str, variant: str) -> list[View]:
        height, width = CROPS[variant]
        crops = [
            16 + row * (width + 1) + column for row in range(height) for column in range(width)
        ]
        return [((1, 4, 4), list(range(16))), ((1, height, width), crops)]
