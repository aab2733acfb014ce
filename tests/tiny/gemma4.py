"""Gemma 4: images of 3 x 2 and 2 x 2 tokens and a video of two frames, one picture padded to the
other's size.

As the large models are: two-way attention within an image in sliding layers, values that are keys,
wider heads in layers of full attention. As the small ones are: the last layers read the keys of
earlier ones, and each layer has an embedding of each token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Gemma4Config

from tests.tiny.base import IMAGE_TOKEN, PAD, VIDEO_TOKEN, Case, View, noise, text, token_types

AUDIO_TOKEN = 62
START, END = torch.tensor([3]), torch.tensor([1])
# Frames, and rows and columns of tokens, 2 x 2 patches each.
GRIDS = {"a": (1, 5, 4), "b": (1, 3, 4), "v": (2, 3, 4), "one": (1, 3, 4)}


class Gemma4(Case):
    name = "gemma4"
    model_class = "Gemma4ForConditionalGeneration"
    projector = "embed_vision.embedding_projection"
    pools = 4
    quick, quick_in_matrix = False, True
    since = "5.23"
    budget = 8
    stages = (1, 3)
    two_way = "sliding"
    layouts = (
        (3, ("image", "a"), 7),
        (5, ("image", "b"), 22),
        (1, ("image", "a"), 4, ("video", "v"), 2, ("image", "b"), 6),
        (2, ("video", "v"), 5),
    )

    def config(self, depth: int) -> Any:
        own = text(depth=depth, head_dim=8, global_head_dim=16, sliding_window=24)
        return Gemma4Config(
            vision_config={
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "head_dim": 8,
                "patch_size": 4,
                "pooling_kernel_size": 2,
                "position_embedding_size": 64,
            },
            text_config=own | {"layer_types": self.kinds(depth)} | self.more_text(),
            image_token_id=IMAGE_TOKEN,
            video_token_id=VIDEO_TOKEN,
            audio_token_id=AUDIO_TOKEN,
        )

    def kinds(self, depth: int) -> list[str]:
        return (["sliding_attention", "full_attention"] * depth)[:depth]

    def more_text(self) -> dict[str, Any]:
        return {
            "use_bidirectional_attention": "vision",
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "hidden_size_per_layer_input": 0,
        }

    def tokens(self, kind: str, variant: str) -> Tensor:
        t, h, w = GRIDS[variant]
        token = IMAGE_TOKEN if kind == "image" else VIDEO_TOKEN
        parts = []
        for frame in range(t):
            stamp = [torch.tensor([60 + frame, 63])] if kind == "video" else []
            parts += [*stamp, START, torch.full((h * w,), token), END]
        return torch.cat(parts)

    def media(self, kind: str, shown: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        frames = [GRIDS[variant][0] for variant, _ in shown]
        # A picture alone comes without padding.
        most = max(4 * GRIDS[variant][1] * GRIDS[variant][2] for variant, _ in shown)
        pixels = torch.zeros(sum(frames), most, 48)
        places = torch.full((sum(frames), most, 2), -1)
        at = 0
        for variant, seed in shown:
            t, h, w = GRIDS[variant]
            here = torch.cartesian_prod(torch.arange(2 * h), torch.arange(2 * w)).flip(1)
            pixels[at : at + t, : len(here)] = noise(t, len(here), 48, seed=seed).sigmoid()
            places[at : at + t, : len(here)] = here
            at += t
        if kind == "image":
            return {"pixel_values": pixels, "image_position_ids": places}
        return {
            "pixel_values_videos": pixels,
            "video_position_ids": places,
            "num_frames_per_video": torch.tensor(frames),
        }

    def extra(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"mm_token_type_ids": token_types(inputs["input_ids"])}

    def as_words(self, ids: Tensor) -> Tensor:
        placeholders = torch.tensor([IMAGE_TOKEN, VIDEO_TOKEN, AUDIO_TOKEN])
        return ids.masked_fill(torch.isin(ids, placeholders), PAD)

    def views(self, kind: str, variant: str) -> list[View]:
        t, h, w = GRIDS[variant]
        return [((t, h, w), list(range(t * h * w)))]

    def pooled(self, values: Tensor) -> Tensor:
        parts = values.reshape(-1, 2, 4, 2)  # all pictures are of four tokens across
        return parts.mean((1, 3)).flatten()


class Gemma4Small(Gemma4):
    """As E2B and E4B."""

    name = "gemma4_small"
    last_stage = 3
    two_way = ""
    quick_in_matrix = False

    def config(self, depth: int) -> Any:
        return super().config(depth + 2)  # so that tokens can leave before layer 3

    def more_text(self) -> dict[str, Any]:
        return {
            "initializer_range": 0.1,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 64,
            "num_kv_shared_layers": 1,
        }
