"""LLaVA-NeXT-Video: images as LLaVA-NeXT's, frames of 2 x 2 pooled cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaNextVideoConfig

from tests.tiny.base import VIDEO_TOKEN, View, noise
from tests.tiny.llava_next import LlavaNext

FRAMES = {"v": 3, "one": 1}


class LlavaNextVideo(LlavaNext):
    name = "llava_next_video"
    model_class = "LlavaNextVideoForConditionalGeneration"
    quick = False
    layouts = (
        (3, ("image", "a"), 7),
        (5, ("image", "b"), 2),
        (1, ("image", "a"), 4, ("video", "v"), 6),
        (2, ("video", "v"), 3),
    )

    def config(self, depth: int) -> Any:
        given = super().config(depth)
        return LlavaNextVideoConfig(
            vision_config=given.vision_config,
            text_config=given.text_config,
            image_token_index=given.image_token_id,
            video_token_index=VIDEO_TOKEN,
            image_grid_pinpoints=given.image_grid_pinpoints,
            vision_feature_layer=given.vision_feature_layer,
            spatial_pool_stride=2,
        )

    def tokens(self, kind: str, variant: str) -> Tensor:
        if kind == "image":
            return super().tokens(kind, variant)
        return torch.full((FRAMES[variant] * self.side(True) ** 2,), VIDEO_TOKEN)

    def side(self, pooled: bool) -> int:
        """Cells along a side of a tile, or of a pooled frame."""
        vision = self.config(1).vision_config
        return vision.image_size // vision.patch_size // (2 if pooled else 1)

    def media(self, kind: str, shown: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        if kind == "image":
            return super().media(kind, shown)
        size = self.config(1).vision_config.image_size
        frames = [noise(FRAMES[variant], 3, size, size, seed=seed) for variant, seed in shown]
        return {"pixel_values_videos": torch.stack(frames)}

    def views(self, kind: str, variant: str) -> list[View]:
        if kind == "image":
            return super().views(kind, variant)
        grid = (FRAMES[variant], self.side(True), self.side(True))
        return [(grid, list(range(grid[0] * grid[1] * grid[2])))]

    def merges_before(self, kind: str) -> bool:
        return kind == "image"

    def pooled_as(self, kind: str, values: Tensor) -> Tensor:
        if kind == "image":
            return super().pooled_as(kind, values)
        side = self.side(False)
        return nn.functional.avg_pool2d(values.reshape(-1, 1, side, side), 2).flatten()
