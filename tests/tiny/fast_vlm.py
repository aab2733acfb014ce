"""FastVLM: 4 x 4 tokens an image, of 64 x 64 pixels each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import FastVlmConfig, Qwen2Config, TimmWrapperConfig

from tests.tiny.base import IMAGE_TOKEN, Case, View, noise, text


class FastVLM(Case):
    name = "fast_vlm"
    model_class = "FastVlmForConditionalGeneration"
    by_timm = True
    quick, quick_in_matrix = False, True
    budget = 9

    def config(self, depth: int) -> Any:
        sizes = {"layers": (1, 1, 1, 1, 2), "embed_dims": (8, 8, 16, 32, 64)}
        return FastVlmConfig(
            vision_config=TimmWrapperConfig(
                architecture="fastvit_mci3",
                hidden_size=128,
                model_args={"inference_mode": True, **sizes},
            ),
            text_config=Qwen2Config(**text(depth=depth)),
            image_token_index=IMAGE_TOKEN,
        )

    def tokens(self, kind: str, variant: str) -> Tensor:
        return torch.full((16,), IMAGE_TOKEN)

    def media(self, kind: str, shown: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        return {"pixel_values": torch.stack([noise(3, 256, 256, seed=seed) for _, seed in shown])}

    def views(self, kind: str, variant: str) -> list[View]:
        return [((1, 4, 4), list(range(16)))]
