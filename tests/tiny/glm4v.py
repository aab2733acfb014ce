"""GLM-4.1V, 4.5V, 4.6V and GLM-OCR: grids of 6 x 4 and 3 x 4 cells; half of a head turns, in
neighbours."""

from __future__ import annotations

from typing import Any

import transformers

from tests.tiny.base import IMAGE_TOKEN, VIDEO_TOKEN, Case, text
from tests.tiny.qwen2_vl import Qwen2VL

ROPE = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "mrope_section": [1, 2, 1],
    "partial_rotary_factor": 0.5,
}
VISION = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "patch_size": 4,
    "image_size": 32,
    "out_hidden_size": 32,
}


class Glm4v(Qwen2VL):
    name = "glm4v"
    model_class = "Glm4vForConditionalGeneration"
    config_class = "Glm4vConfig"
    layouts = Case.layouts
    quick = False

    def config(self, depth: int) -> Any:
        ids = {"image_token_id": IMAGE_TOKEN, "video_token_id": VIDEO_TOKEN}
        heads = {"heads": 2, "num_key_value_heads": 1}
        rope = {"rope_parameters": dict(ROPE)}
        text_config = text(depth=depth, **heads, **rope, **self.more_text())
        vision = VISION | self.more_vision()
        make = getattr(transformers, self.config_class)
        return make(vision_config=vision, text_config=text_config, **ids)

    def more_text(self) -> dict[str, Any]:
        """What a relative's text configuration has beside."""
        return {}

    def more_vision(self) -> dict[str, Any]:
        """What a relative's vision configuration has beside."""
        return {}


class Glm46V(Glm4v):
    name = "glm46v"
    model_class = "Glm46VForConditionalGeneration"
    config_class = "Glm46VConfig"

    def more_text(self) -> dict[str, Any]:
        return {"model_type": "glm4v_text"}

    def more_vision(self) -> dict[str, Any]:
        return {"model_type": "glm4v_vision"}


class Glm4vMoe(Glm4v):
    name = "glm4v_moe"
    model_class = "Glm4vMoeForConditionalGeneration"
    config_class = "Glm4vMoeConfig"

    def more_text(self) -> dict[str, Any]:
        return {
            "initializer_range": 0.1,
            "first_k_dense_replace": 1,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "n_shared_experts": 1,
        }


class GlmOcr(Glm4v):
    name = "glm_ocr"
    model_class = "GlmOcrForConditionalGeneration"
    config_class = "GlmOcrConfig"

    def more_text(self) -> dict[str, Any]:
        return {"head_dim": 16}
