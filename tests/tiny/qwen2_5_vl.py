"""Qwen2.5-VL: as Qwen2-VL, in windows of 2 x 2 tokens but for two layers."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2_5_VLConfig

from tests.tiny.base import IMAGE_TOKEN, VIDEO_TOKEN, text
from tests.tiny.qwen2_vl import ROPE, Qwen2VL


class Qwen2_5VL(Qwen2VL):  # noqa: N801 - as the model is called
    name = "qwen2_5_vl"
    model_class = "Qwen2_5_VLForConditionalGeneration"

    def config(self, depth: int) -> Any:
        return Qwen2_5_VLConfig(
            vision_config={
                "depth": 4,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_heads": 4,
                "patch_size": 4,
                "window_size": 16,
                "out_hidden_size": 32,
                "fullatt_block_indexes": [1, 3],
            },
            text_config=text(depth=depth, rope_parameters=dict(ROPE)),
            image_token_id=IMAGE_TOKEN,
            video_token_id=VIDEO_TOKEN,
        )
