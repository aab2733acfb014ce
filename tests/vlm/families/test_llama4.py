"""What Llama 4 alone has: queries that are scaled by their place, rotations that are complex."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.llama4.configuration_llama4 import Llama4TextConfig
from transformers.models.llama4.modeling_llama4 import Llama4TextRotaryEmbedding

from compress import reduce
from positions import PPE, V2PE, Image, PlannedRotary, PositionTable, Text, plan
from tests.compress import test_matrix as matrix
from tests.tiny.base import text
from tests.tiny.llama4 import Llama4


class Tempered(Llama4):
    """Whose temperature changes every five tokens, and not every 8192."""

    def config(self, depth: int) -> Any:
        config = super().config(depth)
        config.text_config.floor_scale, config.text_config.attn_scale = 5, 2.0
        return config


@pytest.mark.parametrize("shape", ["in_llm", "both"])
def test_queries_are_scaled_by_their_place_among_the_tokens_that_are_left(shape: str) -> None:
    matrix.test_prefill_and_decode_equal_a_full_forward(Tempered(), shape, "sdpa")


def test_planned_rotations_that_are_complex_equal_cos_and_sin() -> None:
    """Tokens of several slots, and of positions between integers."""
    sizes = text(depth=1, head_dim=8)
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    turning = Llama4TextRotaryEmbedding(Llama4TextConfig(**sizes, rope_parameters=rope))
    pair = LlamaRotaryEmbedding(LlamaConfig(**sizes, rope_parameters=rope))
    planned = plan([Text(2), Image((4, 4)), Text(2)], scheme=V2PE(1 / 3))
    keys = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    reduction = reduce(keys[None], "tome", 3, keys=keys[None], grid=(4, 4))
    table = PositionTable.from_plans([planned.after({1: reduction}, slots=PPE(2))])
    x, index = torch.zeros(1), torch.arange(7)[None]
    with PlannedRotary(turning).use(table), PlannedRotary(pair).use(table):
        turns, (cos, sin) = turning(x, index), pair(x, index)
    torch.testing.assert_close(turns, torch.complex(cos[..., :4], sin[..., :4]))
