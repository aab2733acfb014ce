"""Qwen3-VL: as Qwen2-VL, with two DeepStack layers, and a video's frames parted by text."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

from tests.tiny.base import IMAGE_TOKEN, VIDEO_TOKEN, text
from tests.tiny.qwen2_vl import END, GRIDS, START, Qwen2VL

VISION = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "patch_size": 4,
    "out_hidden_size": 32,
    "num_position_embeddings": 64,
}
EXPERTS = {
    "initializer_range": 0.1,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}


class Qwen3VL(Qwen2VL):
    name = "qwen3_vl"
    model_class = "Qwen3VLForConditionalGeneration"
    config_class = "Qwen3VLConfig"

    def config(self, depth: int) -> Any:
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
        return getattr(transformers, self.config_class)(
            vision_config=VISION | {"deepstack_visual_indexes": [0, 2]},
            text_config=text(depth=depth, head_dim=8, rope_parameters=rope, **self.more_text()),
            image_token_id=IMAGE_TOKEN,
            video_token_id=VIDEO_TOKEN,
        )

    def more_text(self) -> dict[str, Any]:
        """What a relative's text configuration has beside."""
        return {}

    def tokens(self, kind: str, variant: str) -> Tensor:
        return super().tokens(kind, variant) if kind == "image" else stamped(variant)


class Qwen3VLMoe(Qwen3VL):
    name = "qwen3_vl_moe"
    model_class = "Qwen3VLMoeForConditionalGeneration"
    config_class = "Qwen3VLMoeConfig"
    quick = False

    def more_text(self) -> dict[str, Any]:
        return dict(EXPERTS)


def stamped(variant: str) -> Tensor:
    """Ids of a video, each frame after its time stamp."""
    t, h, w = GRIDS[variant]
    parts = []
    for frame in range(t):
        stamp = torch.tensor([60 + frame, 63])
        parts += [stamp, START, torch.full((h * w // 4,), VIDEO_TOKEN), END]
    return torch.cat(parts)
