"""LFM2-VL: pictures of 5 x 4 and 3 x 4 tokens, the smaller padded to the other's patches; every
other decoder layer is a convolution over three tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Lfm2Config, Lfm2VlConfig, Siglip2VisionConfig

from tests.tiny.base import IMAGE_TOKEN, Case, View, noise, text

GRIDS = {"a": (5, 4), "b": (3, 4)}  # tokens, of 2 x 2 patches


class Lfm2VL(Case):
    name = "lfm2_vl"
    model_class = "Lfm2VlForConditionalGeneration"
    pools = 4
    quick, quick_in_matrix = False, True
    budget = 9
    stages = (1, 3)
    recurrent = True

    def config(self, depth: int) -> Any:
        kinds = ["conv", "full_attention"] * ((depth + 1) // 2)
        return Lfm2VlConfig(
            vision_config=Siglip2VisionConfig(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_patches=64,
                patch_size=4,
                vision_use_head=False,
            ),
            text_config=Lfm2Config(**text(depth=depth, layer_types=kinds[:depth])),
            image_token_id=IMAGE_TOKEN,
            projector_hidden_size=32,
        )

    def tokens(self, kind: str, variant: str) -> Tensor:
        height, width = GRIDS[variant]
        return torch.cat([torch.tensor([3]), torch.full((height * width,), IMAGE_TOKEN)])

    def media(self, kind: str, shown: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        shapes = torch.tensor([GRIDS[variant] for variant, _ in shown]) * 2
        counts = shapes.prod(1).tolist()
        pixels = torch.zeros(len(shown), max(counts), 3 * 4 * 4)
        mask = torch.zeros(len(shown), max(counts), dtype=torch.int64)
        for number, (count, (_, seed)) in enumerate(zip(counts, shown, strict=True)):
            pixels[number, :count] = noise(count, 3 * 4 * 4, seed=seed)
            mask[number, :count] = 1
        return {"pixel_values": pixels, "spatial_shapes": shapes, "pixel_attention_mask": mask}

    def views(self, kind: str, variant: str) -> list[View]:
        height, width = GRIDS[variant]
        return [((1, height, width), list(range(height * width)))]

    def pooled(self, values: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(values.reshape(1, 1, -1, 8), 2).flatten()
