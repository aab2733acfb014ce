"""Mistral Small 3.1: images of 6 x 4 and 3 x 4 tokens, a break token after each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Mistral3Config, MistralConfig, PixtralVisionConfig

from tests.tiny.base import IMAGE_TOKEN, Case, View, noise, text

BREAK, END = 3, 1
GRIDS = {"a": (6, 4), "b": (3, 4)}  # in patches of 8 x 8 pixels


class Mistral3(Case):
    name = "mistral3"
    model_class = "Mistral3ForConditionalGeneration"
    pools = 4
    budget = 9

    def config(self, depth: int) -> Any:
        return Mistral3Config(
            vision_config=PixtralVisionConfig(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=3,
                num_attention_heads=4,
                image_size=64,
                patch_size=4,
            ),
            text_config=MistralConfig(**text(depth=depth, sliding_window=None)),
            image_token_index=IMAGE_TOKEN,
        )

    def tokens(self, kind: str, variant: str) -> Tensor:
        height, width = GRIDS[variant]
        rows = torch.full((height, width + 1), IMAGE_TOKEN)
        rows[:, -1] = BREAK
        rows[-1, -1] = END
        return rows.flatten()

    def media(self, kind: str, shown: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        sizes = torch.tensor([GRIDS[variant] for variant, _ in shown]) * 8
        height, width = sizes.amax(0).tolist()
        pixels = torch.zeros(len(shown), 3, height, width)
        for number, (_, seed) in enumerate(shown):
            h, w = sizes[number].tolist()
            pixels[number, :, :h, :w] = noise(3, h, w, seed=seed)
        return {"pixel_values": pixels, "image_sizes": sizes}

    def views(self, kind: str, variant: str) -> list[View]:
        height, width = GRIDS[variant]
        return [((1, height, width), list(range(height * width)))]

    def pooled(self, values: Tensor) -> Tensor:
        width = GRIDS["a"][1] * 2  # the same for both
        return nn.functional.avg_pool2d(values.reshape(1, 1, -1, width), 2).flatten()
