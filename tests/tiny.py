"""Tiny random models of stock classes, and prompts for them. No network, no files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

IMAGE_TOKEN = 5
PAD = 0


def llava(attention: str = "sdpa", depth: int = 4) -> Any:
    """A LLaVA with 8 x 8 cells an image, grouped heads, and wide enough weights."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=32,
            patch_size=4,
            initializer_range=0.2,
        ),
        text_config=LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=depth,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.2,
            pad_token_id=PAD,
            bos_token_id=1,
            eos_token_id=2,
        ),
        image_token_id=IMAGE_TOKEN,
        vision_feature_layer=-2,
        image_seq_length=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = LlavaForConditionalGeneration(config).eval()
        # Stock initialisation leaves CLIP's attention almost flat: every choice would be a tie.
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "vision_tower" in name and parameter.ndim > 1:
                    parameter.normal_(0, 0.25)
    model.set_attn_implementation(attention)
    model.generation_config.eos_token_id = None
    return model


def prompt(lengths: Sequence[int], cells: int = 64, seed: int = 0) -> Tensor:
    """(S,) ids: text runs of the given lengths with an image between each two."""
    draw = torch.Generator().manual_seed(seed)
    parts = []
    for number, length in enumerate(lengths):
        if number:
            parts.append(torch.full((cells,), IMAGE_TOKEN))
        parts.append(torch.randint(6, 64, (length,), generator=draw))
    return torch.cat(parts)


def pixels(count: int, seed: int = 0, size: int = 32) -> Tensor:
    """(count, 3, size, size) float32."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def batch(
    prompts: Sequence[Tensor], images: Tensor | None, side: str = "left"
) -> dict[str, Tensor]:
    """Pad prompts on one side; images (n, 3, s, s) in the order of the prompts."""
    width = max(len(ids) for ids in prompts)
    ids = torch.full((len(prompts), width), PAD)
    mask = torch.zeros(len(prompts), width, dtype=torch.int64)
    for row, one in enumerate(prompts):
        at = slice(width - len(one), None) if side == "left" else slice(0, len(one))
        ids[row, at], mask[row, at] = one, 1
    out = {"input_ids": ids, "attention_mask": mask}
    return out if images is None else out | {"pixel_values": images}
