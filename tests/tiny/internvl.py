"""InternVL: tiles of 4 x 4 tokens; an image of three tiles, an image of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import InternVLConfig, InternVLVisionConfig, Qwen2Config

from tests.tiny.base import IMAGE_TOKEN, Case, View, noise, text

TILES = {"a": 3, "b": 1, "frame": 1}


class InternVL(Case):
    name = "internvl"
    model_class = "InternVLForConditionalGeneration"
    has_cls = True
    pools = 4
    frames: ClassVar[dict[str, int]] = {"v": 2, "one": 1}
    budget = 9
    layouts = (*Case.layouts, (2, ("video", "v"), 3))

    def config(self, depth: int) -> Any:
        return InternVLConfig(
            vision_config=InternVLVisionConfig(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=3,
                num_attention_heads=4,
                image_size=[32, 32],
                patch_size=[4, 4],
                layer_scale_init_value=1.0,
            ),
            text_config=Qwen2Config(**text(depth=depth)),
            image_token_id=IMAGE_TOKEN,
            image_seq_length=16,
        )

    def tokens(self, kind: str, variant: str) -> Tensor:
        return torch.full((16 * TILES[variant],), IMAGE_TOKEN)

    def media(self, kind: str, shown: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        tiles = [noise(TILES[variant], 3, 32, 32, seed=seed) for variant, seed in shown]
        return {"pixel_values": torch.cat(tiles)}

    def views(self, kind: str, variant: str) -> list[View]:
        return [
            ((1, 4, 4), list(range(16 * tile, 16 * tile + 16))) for tile in range(TILES[variant])
        ]

    def pooled(self, values: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(values.reshape(-1, 1, 8, 8), 2).flatten()
