"""PerceptionLM: a thumbnail and a tile of 4 x 4 tokens each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, PerceptionLMConfig, TimmWrapperConfig

from tests.tiny.base import IMAGE_TOKEN, VIDEO_TOKEN, Case, View, noise, text


class PerceptionLM(Case):
    name = "perception_lm"
    model_class = "PerceptionLMForConditionalGeneration"
    by_timm = True
    has_cls = True
    pools = 4
    quick, quick_in_matrix = False, True

    def config(self, depth: int) -> Any:
        sizes = {"embed_dim": 32, "depth": 3, "num_heads": 4, "img_size": (32, 32)}
        more = {"patch_size": 4, "global_pool": "", "use_post_transformer_norm": False}
        return PerceptionLMConfig(
            vision_config=TimmWrapperConfig(
                architecture="vit_pe_lang_large_patch14_448",
                do_pooling=False,
                model_args=sizes | more,
            ),
            text_config=LlamaConfig(**text(depth=depth)),
            vision_use_cls_token=True,
            projector_pooling_ratio=2,
            image_token_id=IMAGE_TOKEN,
            video_token_id=VIDEO_TOKEN,
        )

    def tokens(self, kind: str, variant: str) -> Tensor:
        return torch.full((32,), IMAGE_TOKEN)

    def media(self, kind: str, shown: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        images = [noise(2, 3, 32, 32, seed=seed) for _, seed in shown]
        return {"pixel_values": torch.stack(images)}

    def views(self, kind: str, variant: str) -> list[View]:
        return [((1, 4, 4), list(range(16))), ((1, 4, 4), list(range(16, 32)))]

    def pooled(self, values: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(values.reshape(-1, 1, 8, 8), 2).flatten()
