"""DeepSeek-VL: LLaVA with SigLIP and names of its own."""

from __future__ import annotations

from typing import Any

from transformers import DeepseekVLConfig, LlamaConfig, SiglipVisionConfig

from tests.tiny.base import IMAGE_TOKEN, text
from tests.tiny.llava import Llava


class DeepseekVL(Llava):
    name = "deepseek_vl"
    model_class = "DeepseekVLForConditionalGeneration"
    projector = "aligner"
    vision = ("vision_model",)
    has_cls = False
    feature_layer = -1
    quick = False

    def config(self, depth: int) -> Any:
        return DeepseekVLConfig(
            vision_config=SiglipVisionConfig(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=3,
                num_attention_heads=4,
                image_size=32,
                patch_size=4,
                vision_use_head=False,
            ),
            text_config=LlamaConfig(**text(depth=depth)),
            image_token_id=IMAGE_TOKEN,
        )
