"""PaliGemma: 4 x 4 cells an image, a prompt of two-way attention. PaliGemma 2: a window of 8 in
every other layer, and logits that are bent towards 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Gemma2Config, PaliGemmaConfig

from tests.tiny.base import IMAGE_TOKEN, Case, View, noise, text


class PaliGemma(Case):
    name = "paligemma"
    model_class = "PaliGemmaForConditionalGeneration"
    budget = 9
    quick = False
    two_way = "prompt"

    def config(self, depth: int) -> Any:
        return PaliGemmaConfig(
            vision_config={
                "model_type": "siglip_vision_model",
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "image_size": 16,
                "patch_size": 4,
                "vision_use_head": False,
            },
            text_config=text(depth=depth, head_dim=8) | {"model_type": "gemma"},
            image_token_index=IMAGE_TOKEN,
            projection_dim=32,
            hidden_size=32,
        )

    def tokens(self, kind: str, variant: str) -> Tensor:
        return torch.full((16,), IMAGE_TOKEN)

    def media(self, kind: str, shown: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        return {"pixel_values": torch.stack([noise(3, 16, 16, seed=seed) for _, seed in shown])}

    def extra(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"token_type_ids": torch.zeros_like(inputs["input_ids"])}

    def views(self, kind: str, variant: str) -> list[View]:
        return [((1, 4, 4), list(range(16)))]


class PaliGemma2(PaliGemma):
    name = "paligemma2"
    since = "5.23"
    stages = (1, 3)
    attention: ClassVar[tuple[str, ...]] = ("eager",)

    def config(self, depth: int) -> Any:
        config = super().config(depth)
        more = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}
        own = text(depth=depth, attn_logit_softcapping=2.0, **more)
        config.text_config = Gemma2Config(**own)
        return config
