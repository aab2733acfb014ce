"""PaddleOCR-VL: grids of 6 x 4 and 3 x 4 tokens, patches in raster order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PaddleOCRVLConfig

from tests.tiny.base import IMAGE_TOKEN, VIDEO_TOKEN, Case, noise, text
from tests.tiny.qwen2_vl import GRIDS, ROPE, Qwen2VL


class PaddleOcrVL(Qwen2VL):
    name = "paddleocr_vl"
    model_class = "PaddleOCRVLForConditionalGeneration"
    projector = "projector"
    layouts = Case.layouts
    quick = False

    def config(self, depth: int) -> Any:
        return PaddleOCRVLConfig(
            vision_config={
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "image_size": 32,
                "patch_size": 4,
            },
            text_config=text(depth=depth, head_dim=8, rope_parameters=dict(ROPE)),
            image_token_id=IMAGE_TOKEN,
            video_token_id=VIDEO_TOKEN,
        )

    def media(self, kind: str, shown: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        grids = torch.tensor([GRIDS[variant] for variant, _ in shown])
        counts = grids.prod(1).tolist()
        patches = [
            noise(count, 3, 4, 4, seed=seed) for count, (_, seed) in zip(counts, shown, strict=True)
        ]
        return {"pixel_values": torch.cat(patches), "image_grid_thw": grids}

    def pooled(self, values: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(values.reshape(1, 1, -1, 8), 2).flatten()
