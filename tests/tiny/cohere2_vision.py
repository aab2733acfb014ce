"""Aya Vision and Command A Vision: tiles of 4 x 4 cells, each an input of its own; a window of 24
in every other layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import Cohere2Config, SiglipVisionConfig

from tests.tiny.base import IMAGE_TOKEN, Case, View, noise, text

START, END = torch.tensor([3]), torch.tensor([1])


class Cohere2Vision(Case):
    name = "cohere2_vision"
    model_class = "Cohere2VisionForConditionalGeneration"
    config_class = "Cohere2VisionConfig"
    pools = 4
    budget = 9
    stages = (1, 3)
    quick = False
    layouts = (
        (3, ("image", "a"), 7),
        (5, ("image", "a"), 22),
        (1, ("image", "a"), 4, ("image", "a"), 6),
    )

    def config(self, depth: int) -> Any:
        kinds = ["sliding_attention", "full_attention"] * ((depth + 1) // 2)
        return getattr(transformers, self.config_class)(
            vision_config=SiglipVisionConfig(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=3,
                num_attention_heads=4,
                image_size=32,
                patch_size=4,
                vision_use_head=False,
            ),
            text_config=Cohere2Config(
                **text(depth=depth, sliding_window=24, layer_types=kinds[:depth])
            ),
            image_token_id=IMAGE_TOKEN,
            downsample_factor=2,
            alignment_intermediate_size=64,
        )

    def tokens(self, kind: str, variant: str) -> Tensor:
        return torch.cat([START, torch.full((16,), IMAGE_TOKEN), END])

    def media(self, kind: str, shown: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        return {"pixel_values": torch.stack([noise(3, 32, 32, seed=seed) for _, seed in shown])}

    def views(self, kind: str, variant: str) -> list[View]:
        return [((1, 4, 4), list(range(16)))]

    def pooled(self, values: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(values.reshape(-1, 1, 8, 8), 2).flatten()


class AyaVision(Cohere2Vision):
    name = "aya_vision"
    model_class = "AyaVisionForConditionalGeneration"
    config_class = "AyaVisionConfig"
