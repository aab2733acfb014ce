"""Gemma 3: images of 4 x 4 tokens with two-way attention, a window of 24 in every other layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Gemma3Config

from tests.tiny.base import IMAGE_TOKEN, Case, View, noise, text

START, END = torch.tensor([3]), torch.tensor([1])


class Gemma3(Case):
    name = "gemma3"
    model_class = "Gemma3ForConditionalGeneration"
    pools = 4
    quick, quick_in_matrix = False, True
    budget = 9
    stages = (1, 3)
    two_way = "image"
    layouts = (
        (3, ("image", "a"), 7),
        (5, ("image", "a"), 22),
        (1, ("image", "a"), 4, ("image", "a"), 6),
    )

    def config(self, depth: int) -> Any:
        kinds = ["sliding_attention", "full_attention"] * ((depth + 1) // 2)
        return Gemma3Config(
            vision_config={
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "image_size": 32,
                "patch_size": 4,
                "vision_use_head": False,
            },
            text_config=text(
                depth=depth,
                head_dim=8,
                sliding_window=24,
                query_pre_attn_scalar=16,
                layer_types=kinds[:depth],
            ),
            image_token_index=IMAGE_TOKEN,
            mm_tokens_per_image=16,
        )

    def tokens(self, kind: str, variant: str) -> Tensor:
        return torch.cat([START, torch.full((16,), IMAGE_TOKEN), END])

    def media(self, kind: str, shown: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        return {"pixel_values": torch.stack([noise(3, 32, 32, seed=seed) for _, seed in shown])}

    def extra(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"token_type_ids": (inputs["input_ids"] == IMAGE_TOKEN).long()}

    def views(self, kind: str, variant: str) -> list[View]:
        return [((1, 4, 4), list(range(16)))]

    def pooled(self, values: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(values.reshape(-1, 1, 8, 8), 2).flatten()
