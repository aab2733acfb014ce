"""Llama 4: tiles of 4 x 4 tokens; chunks of 24, and layers of full attention without rotation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Llama4Config

from tests.tiny.base import IMAGE_TOKEN, Case, View, noise, text

START, END = torch.tensor([3]), torch.tensor([1])


class Llama4(Case):
    name = "llama4"
    model_class = "Llama4ForConditionalGeneration"
    projector = "vision_model.vision_adapter"
    vision = ("vision_model",)
    pools = 4
    has_cls = True
    cls_last = True
    quick, quick_in_matrix = False, True
    budget = 9
    stages = (1, 3)
    layouts = (
        (3, ("image", "a"), 7),
        (5, ("image", "a"), 22),
        (1, ("image", "a"), 4, ("image", "a"), 6),
    )

    def config(self, depth: int) -> Any:
        return Llama4Config(
            vision_config={
                "hidden_size": 32,
                "intermediate_size": 128,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "image_size": 32,
                "patch_size": 4,
                "projector_input_dim": 32,
                "projector_output_dim": 32,
                "vision_output_dim": 32,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            },
            text_config=text(
                depth=depth,
                head_dim=8,
                intermediate_size_mlp=48,
                num_local_experts=4,
                interleave_moe_layer_step=2,
                no_rope_layer_interval=2,
                attention_chunk_size=24,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            ),
            image_token_index=IMAGE_TOKEN,
        )

    def core(self, model: Any) -> Any:
        return model

    def features(self, output: Any) -> Any:
        return output.last_hidden_state

    def entering(self, model: Any, features: Tensor) -> Tensor:
        projected: Tensor = model.multi_modal_projector(features)
        return projected

    def tokens(self, kind: str, variant: str) -> Tensor:
        return torch.cat([START, torch.full((16,), IMAGE_TOKEN), END])

    def media(self, kind: str, shown: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        return {"pixel_values": torch.stack([noise(3, 32, 32, seed=seed) for _, seed in shown])}

    def views(self, kind: str, variant: str) -> list[View]:
        return [((1, 4, 4), list(range(16)))]

    def pooled(self, values: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(values.reshape(-1, 1, 8, 8), 2).flatten()
