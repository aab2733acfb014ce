"""ERNIE 4.5 VL: Qwen2-VL's grids; visual tokens and the marks around them have experts of their
own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Ernie4_5_VLMoeConfig

from tests.tiny.base import IMAGE_TOKEN, VIDEO_TOKEN, Case, noise, text, token_types
from tests.tiny.qwen2_vl import GRIDS, Qwen2VL

START, END = 61, 62


class Ernie45VLMoe(Qwen2VL):
    name = "ernie4_5_vl_moe"
    model_class = "Ernie4_5_VLMoeForConditionalGeneration"
    projector = "resampler_model"
    vision = ("vision_tower",)
    layouts = Case.layouts
    quick = False
    first_mark = START

    def config(self, depth: int) -> Any:
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
        return Ernie4_5_VLMoeConfig(
            vision_config={
                "depth": 4,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_heads": 4,
                "patch_size": 4,
            },
            text_config=text(
                depth=depth,
                rope_parameters=rope,
                initializer_range=0.1,
                moe_intermediate_size=[16, 16],
                moe_k=2,
                moe_num_experts=4,
                moe_num_shared_experts=1,
                mlp_layer_types=["dense", *["sparse"] * (depth - 1)],
            ),
            image_token_id=IMAGE_TOKEN,
            video_token_id=VIDEO_TOKEN,
            image_start_token_id=START,
            image_end_token_id=END,
        )

    def tokens(self, kind: str, variant: str) -> Tensor:
        t, h, w = GRIDS[variant]
        inside = torch.full((t * h * w // 4,), IMAGE_TOKEN)
        return torch.cat([torch.tensor([START]), inside, torch.tensor([END])])

    def media(self, kind: str, shown: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        grids = torch.tensor([GRIDS[variant] for variant, _ in shown])
        counts = grids.prod(1).tolist()
        patches = [noise(n, 48, seed=seed) for n, (_, seed) in zip(counts, shown, strict=True)]
        return {"pixel_values": torch.cat(patches), "image_grid_thw": grids}

    def extra(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        types = token_types(inputs["input_ids"])
        if "pixel_values" not in inputs:
            return {"mm_token_type_ids": types}
        experts = self.experts_of(inputs["input_ids"])
        return {"mm_token_type_ids": types, "moe_mm_token_type_ids": experts}

    def experts_of(self, ids: Tensor) -> Tensor:
        return torch.isin(ids, torch.tensor([START, END, IMAGE_TOKEN])).long()
