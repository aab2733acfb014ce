"""VipLLaVA: LLaVA on two CLIP layers, of which the deeper is named first."""

from __future__ import annotations

from typing import Any

from transformers import VipLlavaConfig

from tests.tiny.llava import Llava


class VipLlava(Llava):
    name = "vipllava"
    model_class = "VipLlavaForConditionalGeneration"
    quick = False
    since = "5.23"

    def config(self, depth: int) -> Any:
        given = super().config(depth)
        return VipLlavaConfig(
            vision_config=given.vision_config,
            text_config=given.text_config,
            image_token_index=given.image_token_id,
            vision_feature_layer=[-2, 1],
            image_seq_length=64,
        )
