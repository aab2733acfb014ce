"""Aya Vision and Command A Vision: tiles shaped as Gemma 3's images, each an input of its own, with
causal attention."""

from __future__ import annotations

from typing import Any

import transformers
from torch import Tensor
from transformers import Cohere2Config, SiglipVisionConfig

from tests.tiny.base import IMAGE_TOKEN, Case, text
from tests.tiny.gemma3 import Gemma3


class Cohere2Vision(Gemma3):
    name = "cohere2_vision"
    model_class = "Cohere2VisionForConditionalGeneration"
    config_class = "Cohere2VisionConfig"
    quick, quick_in_matrix = False, False
    two_way = Case.two_way

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

    def extra(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {}


class AyaVision(Cohere2Vision):
    name = "aya_vision"
    model_class = "AyaVisionForConditionalGeneration"
    config_class = "AyaVisionConfig"
