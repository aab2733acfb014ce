"""LLaVA-OneVision: tiles of 6 x 6 tokens; crops resampled, crops as they are, one tile, a video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

from tests.tiny.base import IMAGE_TOKEN, VIDEO_TOKEN, Case, View, noise, text

# a: 2 x 2 crops shrunk to 8 x 8 tokens. b: a strip, unpadded. s: one of several images, one tile.
SIZES = {"a": (48, 48), "b": (16, 48), "s": (30, 30)}
TILES = {"a": 5, "b": 3, "s": 1}
CROPS = {"a": (8, 8), "b": (4, 12), "s": (1, 0)}
FRAMES = {"v": 2, "one": 1}


class LlavaOnevision(Case):
    name = "llava_onevision"
    model_class = "LlavaOnevisionForConditionalGeneration"
    pools = None
    budget = 14
    layouts = (
        (3, ("image", "a"), 7),
        (5, ("image", "b"), 2),
        (1, ("image", "s"), 4, ("video", "v"), 3, ("image", "s"), 6),
        (2, ("video", "v"), 3),
    )

    def config(self, depth: int) -> Any:
        return LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=3,
                num_attention_heads=4,
                image_size=24,
                patch_size=4,
                vision_use_head=False,
            ),
            text_config=Qwen2Config(**text(depth=depth)),
            image_token_index=IMAGE_TOKEN,
            video_token_index=VIDEO_TOKEN,
            image_grid_pinpoints=[[24, 48], [48, 24], [48, 48]],
            vision_aspect_ratio="anyres_max_2",
        )

    def tokens(self, kind: str, variant: str) -> Tensor:
        if kind == "video":
            return torch.full((FRAMES[variant] * 9 + 1,), VIDEO_TOKEN)
        height, width = CROPS[variant]
        return torch.full((36 + height * (width + 1),), IMAGE_TOKEN)

    def media(self, kind: str, shown: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        if kind == "video":
            videos = [noise(FRAMES[variant], 3, 24, 24, seed=seed) for variant, seed in shown]
            return {"pixel_values_videos": torch.stack(videos)}
        most = max(TILES[variant] for variant, _ in shown)
        pixels = torch.zeros(len(shown), most, 3, 24, 24)
        numbers: list[int] = []
        for number, (variant, seed) in enumerate(shown):
            pixels[number, : TILES[variant]] = noise(TILES[variant], 3, 24, 24, seed=seed)
            single = variant == "s"
            if not single or number == 0 or shown[number - 1][0] != "s":
                numbers.append(2 if single else 1)  # images in its prompt
        sizes = torch.tensor([SIZES[variant] for variant, _ in shown])
        return {
            "pixel_values": pixels,
            "image_sizes": sizes,
            "batch_num_images": torch.tensor(numbers),
        }

    def views(self, kind: str, variant: str) -> list[View]:
        if kind == "video":
            count = FRAMES[variant] * 9
            return [((FRAMES[variant], 3, 3), list(range(count)))]
        base = ((1, 6, 6), list(range(36)))
        height, width = CROPS[variant]
        if not width:
            return [base]
        crops = [
            36 + row * (width + 1) + column for row in range(height) for column in range(width)
        ]
        return [base, ((1, height, width), crops)]

    def pooled(self, values: Tensor) -> Tensor:
        return values
