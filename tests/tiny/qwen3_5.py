"""Qwen3.5: as Qwen3-VL without DeepStack; every other decoder layer is linear, queries are gated,
and half of a head is rotated."""

from __future__ import annotations

from typing import Any

import transformers

from tests.tiny.base import IMAGE_TOKEN, VIDEO_TOKEN, text
from tests.tiny.qwen3_vl import EXPERTS, VISION, Qwen3VL


class Qwen3_5(Qwen3VL):  # noqa: N801 - as the model is called
    name = "qwen3_5"
    model_class = "Qwen3_5ForConditionalGeneration"
    config_class = "Qwen3_5Config"
    stages = (1, 3)
    recurrent = True
    quick, quick_in_matrix = False, True

    def text_config(self, depth: int) -> dict[str, Any]:
        rope = {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2, 1, 1],
            "partial_rotary_factor": 0.5,
        }
        kinds = ["linear_attention", "full_attention"] * ((depth + 1) // 2)
        return text(
            depth=depth,
            head_dim=16,
            rope_parameters=rope,
            layer_types=kinds[:depth],
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            **self.more_text(),
        )

    def config(self, depth: int) -> Any:
        return getattr(transformers, self.config_class)(
            vision_config=dict(VISION),
            text_config=self.text_config(depth),
            image_token_id=IMAGE_TOKEN,
            video_token_id=VIDEO_TOKEN,
        )


class Qwen3_5Moe(Qwen3_5):  # noqa: N801 - as the model is called
    name = "qwen3_5_moe"
    model_class = "Qwen3_5MoeForConditionalGeneration"
    config_class = "Qwen3_5MoeConfig"
    quick_in_matrix = False

    def more_text(self) -> dict[str, Any]:
        return EXPERTS | {"shared_expert_intermediate_size": 16}
