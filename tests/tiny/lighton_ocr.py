"""LightOnOCR: as Mistral Small 3.1, with names of its own and a Qwen3 decoder."""

from __future__ import annotations

from typing import Any

from transformers import LightOnOcrConfig, Qwen3Config

from tests.tiny.base import IMAGE_TOKEN, text
from tests.tiny.mistral3 import Mistral3


class LightOnOcr(Mistral3):
    name = "lighton_ocr"
    model_class = "LightOnOcrForConditionalGeneration"
    projector = "vision_projection"
    vision = ("vision_encoder",)
    quick = False

    def config(self, depth: int) -> Any:
        return LightOnOcrConfig(
            vision_config=super().config(depth).vision_config,
            text_config=Qwen3Config(**text(depth=depth, head_dim=8)),
            image_token_id=IMAGE_TOKEN,
        )
