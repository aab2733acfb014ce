"""Molmo 2: a view of 3 x 3 tokens, and crops of 3 x 6 or 3 x 3, whose last column has half the
patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Molmo2Config

from tests.tiny.base import IMAGE_TOKEN, Case, View, noise, text

MARK, COLUMN = 1, 3
# Columns of patches that the crops cover, six a crop, without overlap.
COLUMNS = {"a": 12, "b": 5}
WIDTHS = {"a": 6, "b": 3}
CROPS = {"a": 3, "b": 2}
SIDE = 6


class Molmo2(Case):
    name = "molmo2"
    model_class = "Molmo2ForConditionalGeneration"
    projector = "multi_modal_projector.image_projector"
    pools = None
    two_way = "images"
    marks = (IMAGE_TOKEN, MARK, COLUMN)
    quick, quick_in_matrix = False, True

    def config(self, depth: int) -> Any:
        sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4}
        return Molmo2Config(
            vision_config={
                "intermediate_size": 48,
                "num_hidden_layers": 3,
                "head_dim": 8,
                "image_size": [24, 24],
                "patch_size": 4,
                **sizes,
            },
            adapter_config={
                "vision_feature_layer": [2, 0],
                "head_dim": 8,
                "intermediate_size": 48,
                "text_hidden_size": 32,
                "initializer_range": 0.2,
                **sizes,
            },
            text_config=text(
                depth=depth,
                head_dim=8,
                additional_vocab_size=2,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            ),
            image_patch_id=IMAGE_TOKEN,
        )

    def tokens(self, kind: str, variant: str) -> Tensor:
        row = [*[IMAGE_TOKEN] * WIDTHS[variant], COLUMN]
        return torch.tensor([MARK, *[IMAGE_TOKEN] * 9, MARK, MARK, *row * 3, MARK])

    def media(self, kind: str, shown: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        pixels, pooling, grids, first = [], [], [], 0
        for variant, seed in shown:
            pixels.append(noise(CROPS[variant], SIDE**2, 48, seed=seed))
            pooling += [[i + first if i >= 0 else -1 for i in one] for one in pooled_of(variant)]
            grids.append([3, 3, 3, WIDTHS[variant]])
            first += CROPS[variant] * SIDE**2
        return {
            "pixel_values": torch.cat(pixels),
            "image_token_pooling": torch.tensor(pooling),
            "image_grids": torch.tensor(grids),
        }

    def extra(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        types = torch.isin(inputs["input_ids"], torch.tensor(self.marks)).long()
        return {"mm_token_type_ids": types}

    def entering(self, model: Any, features: Tensor) -> Tensor:
        added: Tensor = features + model.get_input_embeddings().weight[IMAGE_TOKEN]
        return added

    def views(self, kind: str, variant: str) -> list[View]:
        width = WIDTHS[variant]
        return [((1, 3, 3), list(range(9))), ((1, 3, width), list(range(9, 9 + 3 * width)))]

    def pooled(self, values: Tensor) -> Tensor:
        whole, *crops = values.reshape(-1, SIDE, SIDE)
        joined = torch.cat(crops, 1)
        joined = joined[:, : COLUMNS["a" if len(crops) == 2 else "b"]]
        means = [functional.avg_pool2d(x[None], 2, ceil_mode=True) for x in (whole, joined)]
        return torch.cat([x.flatten() for x in means])


def pooled_of(variant: str) -> list[list[int]]:
    """The patches of each token, -1 beyond the crops."""
    index = torch.arange(CROPS[variant] * SIDE**2).reshape(-1, SIDE, SIDE)
    planes = [index[0], torch.cat(list(index[1:]), 1)[:, : COLUMNS[variant]]]
    tokens = []
    for plane in planes:
        plane = functional.pad(plane, (0, plane.shape[1] % 2), value=-1)
        tokens += plane.unfold(0, 2, 2).unfold(1, 2, 2).reshape(-1, 4).tolist()
    return tokens
