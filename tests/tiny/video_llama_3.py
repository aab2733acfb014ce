"""VideoLLaMA 3: pictures of 6 x 4 and 3 x 4 tokens, a patch each; a video of 2 x 2 x 4 tokens, of
2 x 2 patches each, its frames parted by text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2Config, VideoLlama3Config

from tests.tiny.base import IMAGE_TOKEN, VIDEO_TOKEN, Case, View, noise, text

GRIDS = {"a": (1, 6, 4), "b": (1, 3, 4), "v": (2, 4, 8), "one": (1, 4, 8)}  # in patches
SIDE = {"image": 1, "video": 2}


class VideoLlama3(Case):
    name = "video_llama_3"
    model_class = "VideoLlama3ForConditionalGeneration"
    projector = "projector.readout"
    vision = ("vision_model",)
    pools = None
    quick = False
    budget = 9
    layouts = (
        (3, ("image", "a"), 7),
        (5, ("image", "b"), 2),
        (1, ("image", "a"), 4, ("video", "v"), 2, ("image", "b"), 6),
        (2, ("video", "v"), 3),
    )

    def config(self, depth: int) -> Any:
        return VideoLlama3Config(
            vision_config={
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "patch_size": 4,
            },
            text_config=Qwen2Config(**text(depth=depth)),
            image_token_id=IMAGE_TOKEN,
            video_token_id=VIDEO_TOKEN,
        )

    def tokens(self, kind: str, variant: str) -> Tensor:
        t, h, w = GRIDS[variant]
        if kind == "image":
            return torch.full((h * w,), IMAGE_TOKEN)
        stamps = [torch.tensor([60 + frame, 63]) for frame in range(t)]
        frame = torch.full((h * w // 4,), VIDEO_TOKEN)
        return torch.cat([part for stamp in stamps for part in (stamp, frame)])

    def media(self, kind: str, shown: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        grids = torch.tensor([GRIDS[variant] for variant, _ in shown])
        counts = grids.prod(1).tolist()
        patches = [noise(n, 48, seed=seed) for n, (_, seed) in zip(counts, shown, strict=True)]
        name = "pixel_values" if kind == "image" else "pixel_values_videos"
        return {
            name: torch.cat(patches),
            f"{kind}_grid_thw": grids,
            f"{kind}_merge_sizes": torch.full((len(shown),), SIDE[kind]),
        }

    def views(self, kind: str, variant: str) -> list[View]:
        t, h, w = GRIDS[variant]
        side = SIDE[kind]
        return [((t, h // side, w // side), list(range(t * h * w // side**2)))]

    def pooled_as(self, kind: str, values: Tensor) -> Tensor:
        return values.reshape(-1, SIDE[kind] ** 2).mean(1)
