"""Video-LLaVA: 4 x 4 tokens an image; videos of 2 frames, each a class token and 4 x 4 tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, VideoLlavaConfig

from tests.tiny.base import IMAGE_TOKEN, VIDEO_TOKEN, Case, View, clip, noise, text

FRAMES = {"v": 2, "one": 1}


class VideoLlava(Case):
    name = "video_llava"
    model_class = "VideoLlavaForConditionalGeneration"
    since = "5.21"
    vision = ("image_tower", "video_tower")
    has_cls = True
    feature_layer = -2
    budget = 7
    layouts = (
        (3, ("image", "a"), 7),
        (1, ("image", "a"), 4, ("video", "v"), 2, ("image", "a"), 6),
        (2, ("video", "v"), 3),
    )

    def config(self, depth: int) -> Any:
        return VideoLlavaConfig(
            vision_config=clip(16),
            text_config=LlamaConfig(**text(depth=depth)),
            image_token_index=IMAGE_TOKEN,
            video_token_index=VIDEO_TOKEN,
            image_seq_length=16,
            video_seq_length=34,
        )

    def tokens(self, kind: str, variant: str) -> Tensor:
        if kind == "image":
            return torch.full((16,), IMAGE_TOKEN)
        return torch.full((17 * FRAMES[variant],), VIDEO_TOKEN)

    def media(self, kind: str, shown: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        if kind == "image":
            return {"pixel_values": torch.stack([noise(3, 16, 16, seed=seed) for _, seed in shown])}
        videos = [noise(FRAMES[variant], 3, 16, 16, seed=seed) for variant, seed in shown]
        return {"pixel_values_videos": torch.stack(videos)}

    def views(self, kind: str, variant: str) -> list[View]:
        if kind == "image":
            return [((1, 4, 4), list(range(16)))]
        frames = FRAMES[variant]
        return [((frames, 4, 4), [n for n in range(17 * frames) if n % 17])]

    def keeps_cls(self, kind: str) -> bool:
        return kind == "video"
