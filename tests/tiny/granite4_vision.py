"""Granite 4 Vision: LLaVA-NeXT's pictures, 2 x 2 rows to a token, features before layers 0 to 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Granite4VisionConfig

from tests.tiny.base import IMAGE_TOKEN, noise, text
from tests.tiny.llava_next import SIZES, TILES, LlavaNext


class Granite4Vision(LlavaNext):
    name = "granite4_vision"
    model_class = "Granite4VisionForConditionalGeneration"
    projector = "layerwise_projectors.1"
    has_cls = False
    pools = 4
    feature_layer = -1
    quick, quick_in_matrix = False, True

    def config(self, depth: int) -> Any:
        return Granite4VisionConfig(
            vision_config={
                "model_type": "siglip_vision_model",
                "hidden_size": 64,
                "intermediate_size": 48,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "image_size": 32,
                "patch_size": 4,
                "vision_use_head": False,
            },
            text_config=text(
                depth=depth,
                embedding_multiplier=3.0,
                logits_scaling=2.0,
                residual_multiplier=0.7,
                attention_multiplier=0.4,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            ),
            image_token_index=IMAGE_TOKEN,
            image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
            vision_feature_select_strategy="full",
            downsample_rate="2/4",
            deepstack_layer_map=[[-2, 2], [-1, 0]],
            spatial_vision_layer=-1,
            spatial_target_layers=[1, 3, 3, 3],  # of one layer, the last holds
            projector_dropout=0.0,
            qformer_config={
                "model_type": "blip_2_qformer",
                "num_hidden_layers": 1,
                "intermediate_size": 48,
                "cross_attention_frequency": 1,
                "use_qformer_text_input": False,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            },
        )

    def media(self, kind: str, shown: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        most = max(TILES[variant] for variant, _ in shown)
        pixels = torch.zeros(len(shown), most, 3, 32, 32)
        for number, (variant, seed) in enumerate(shown):
            pixels[number, : TILES[variant]] = noise(TILES[variant], 3, 32, 32, seed=seed)
        sizes = 2 * torch.tensor([SIZES[variant] for variant, _ in shown])
        return {"pixel_values": pixels, "image_sizes": sizes}

    def features(self, output: Any) -> Any:
        return dict(output.deepstack_features)[0]

    def deepstack(self, output: Any) -> list[Any]:
        by_layer = dict(output.deepstack_features)
        return [by_layer[layer] for layer in (1, 2, 3)]

    def pooled(self, values: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(values.reshape(-1, 1, 8, 8), 2).flatten()
