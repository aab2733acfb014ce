"""MiniCPM-V 4.6: pictures of 3 x 4 and 2 x 4 tokens, of 4 x 4 patches each, merged after
the second layer; frames as pictures; a Qwen3.5 decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MiniCPMV4_6Config

from tests.tiny.base import IMAGE_TOKEN, VIDEO_TOKEN, Case, View, noise
from tests.tiny.qwen3_5 import Qwen3_5

SMALL = {"initializer_range": 0.1}
GRIDS = {"a": (3, 4), "b": (2, 4)}  # tokens


class MiniCPMV46(Qwen3_5):
    name = "minicpmv4_6"
    model_class = "MiniCPMV4_6ForConditionalGeneration"
    projector = "merger"
    vision = ("vision_tower",)
    pools = 4
    quick, quick_in_matrix = False, False
    budget = 6
    layouts = Case.layouts

    def config(self, depth: int) -> Any:
        return MiniCPMV4_6Config(
            vision_config={
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "image_size": 64,
                "patch_size": 4,
            },
            text_config={"model_type": "qwen3_5_text", **self.text_config(depth)} | SMALL,
            insert_layer_id=1,
            image_token_id=IMAGE_TOKEN,
            video_token_id=VIDEO_TOKEN,
        )

    def tokens(self, kind: str, variant: str) -> Tensor:
        height, width = GRIDS[variant]
        token = IMAGE_TOKEN if kind == "image" else VIDEO_TOKEN
        return torch.cat([torch.tensor([3]), torch.full((height * width,), token)])

    def media(self, kind: str, shown: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        sizes = torch.tensor([GRIDS[variant] for variant, _ in shown]) * 4
        counts = sizes.prod(1).tolist()
        parts = [
            noise(1, 3, 4, 4 * n, seed=seed) for n, (_, seed) in zip(counts, shown, strict=True)
        ]
        end = "" if kind == "image" else "_videos"
        return {f"pixel_values{end}": torch.cat(parts, -1), f"target_sizes{end}": sizes}

    def extra(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def views(self, kind: str, variant: str) -> list[View]:
        height, width = GRIDS[variant]
        return [((1, height, width), list(range(height * width)))]

    def pooled(self, values: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(values.reshape(1, 1, -1, 8), 2).flatten()
