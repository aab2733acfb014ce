"""Ovis2: tiles of 4 x 4 tokens between indicator tokens, over a visual vocabulary of 45 words."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Ovis2Config, Qwen2Config

from tests.tiny.base import IMAGE_TOKEN, Case, text
from tests.tiny.gemma3 import Gemma3

INDICATORS = [58, 59, 60, 61, 62]


class Ovis2(Gemma3):
    name = "ovis2"
    model_class = "Ovis2ForConditionalGeneration"
    projector = "visual_embeddings_table"
    quick, quick_in_matrix = False, False
    stages = Case.stages
    first_mark = INDICATORS[0]
    two_way = Case.two_way

    def config(self, depth: int) -> Any:
        return Ovis2Config(
            vision_config={
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "image_size": 32,
                "patch_size": 4,
                "hidden_stride": 2,
                "vocab_size": 50,
            },
            text_config=Qwen2Config(**text(depth=depth)),
            image_token_id=IMAGE_TOKEN,
            visual_indicator_token_ids=INDICATORS,
            hidden_size=32,
            vocab_size=64,
        )

    def tokens(self, kind: str, variant: str) -> Tensor:
        begin, end = torch.tensor(INDICATORS[:1]), torch.tensor(INDICATORS[2:3])
        return torch.cat([begin, torch.full((16,), IMAGE_TOKEN), end])

    def words(self, model: Any, ids: Tensor) -> Tensor:
        words, table = super().words(model, ids).clone(), model.model.visual_embeddings_table.weight
        for row, indicator in enumerate(INDICATORS):
            words[ids == indicator] = table[row - len(INDICATORS)]
        return words

    def extra(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {}
