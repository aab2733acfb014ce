"""Qwen2-VL: grids of 6 x 4 and 3 x 4 tokens, a video of 2 x 4 x 4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2VLConfig

from tests.tiny.base import IMAGE_TOKEN, VIDEO_TOKEN, Case, View, noise, text, token_types

# Grids in patches: two a side make a token.
GRIDS = {"a": (1, 12, 8), "b": (1, 6, 8), "v": (2, 8, 8), "w": (1, 8, 4), "one": (1, 8, 8)}
START, END = torch.tensor([3]), torch.tensor([1])
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}


class Qwen2VL(Case):
    name = "qwen2_vl"
    model_class = "Qwen2VLForConditionalGeneration"
    vision = ("visual",)
    projector = "visual.merger"
    pools = 4
    budget = 9
    layouts = (
        (3, ("image", "a"), 7),
        (5, ("image", "b"), 2),
        (1, ("image", "a"), 4, ("video", "v"), 2, ("image", "b"), 6),
        (2, ("video", "v"), 3),
    )

    def config(self, depth: int) -> Any:
        return Qwen2VLConfig(
            vision_config={
                "depth": 4,
                "embed_dim": 32,
                "hidden_size": 32,
                "mlp_ratio": 2,
                "num_heads": 4,
                "patch_size": 4,
            },
            text_config=text(depth=depth, rope_parameters=dict(ROPE)),
            image_token_id=IMAGE_TOKEN,
            video_token_id=VIDEO_TOKEN,
        )

    def tokens(self, kind: str, variant: str) -> Tensor:
        t, h, w = GRIDS[variant]
        token = IMAGE_TOKEN if kind == "image" else VIDEO_TOKEN
        return torch.cat([START, torch.full((t * h * w // 4,), token), END])

    def media(self, kind: str, shown: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        grids = torch.tensor([GRIDS[variant] for variant, _ in shown])
        counts = grids.prod(1).tolist()
        patches = [
            noise(count, 3 * 2 * 4 * 4, seed=seed)
            for count, (_, seed) in zip(counts, shown, strict=True)
        ]
        name = "pixel_values" if kind == "image" else "pixel_values_videos"
        return {name: torch.cat(patches), f"{kind}_grid_thw": grids}

    def extra(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"mm_token_type_ids": token_types(inputs["input_ids"])}

    def views(self, kind: str, variant: str) -> list[View]:
        t, h, w = GRIDS[variant]
        return [((t, h // 2, w // 2), list(range(t * h * w // 4)))]
