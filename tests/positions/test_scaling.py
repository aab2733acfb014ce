"""Frequencies for long prompts."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from positions import Image, PositionError, Text, plan
from positions.diagnose import diagnose
from positions.scaling import Linear, Power, Truncated, remedies

CONFIG = LlamaConfig(
    hidden_size=64, num_attention_heads=2, max_position_embeddings=512, num_hidden_layers=2
)


def test_linear_scaling_is_a_scaling_of_positions() -> None:
    rotary = LlamaRotaryEmbedding(CONFIG)
    x, index = torch.zeros(1), torch.arange(0, 40, 4)[None]
    before = rotary(x, index)
    own = rotary.inv_freq
    with Linear(4).on(rotary):
        scaled = rotary(x, 4 * index)
    for a, b in zip(before, scaled, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    assert rotary.inv_freq is own
    assert all(torch.equal(a, b) for a, b in zip(before, rotary(x, index), strict=True))


def test_power_and_truncated() -> None:
    inv_freq = torch.tensor([1.0, 0.1, 0.01, 0.001])
    assert Power(0.5).frequencies(inv_freq).tolist() == pytest.approx(
        [1.0, 0.1 * 0.75**0.5, 0.01 * 0.5**0.5, 0.001 * 0.25**0.5]
    )
    length = 2 * math.pi / 0.05  # 0.01 is between an eighth and one turn, 0.001 below
    assert Truncated(length).frequencies(inv_freq).tolist() == pytest.approx(
        [1.0, 0.1, 0.05 / 16, 0.0]
    )
    for make in (lambda: Linear(0), lambda: Power(-1), lambda: Truncated(math.inf)):
        with pytest.raises(PositionError, match="expected a positive number"):
            make()


def test_a_rotary_embedding_that_renews_its_frequencies_is_refused() -> None:
    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    )
    with (
        pytest.raises(PositionError, match="'dynamic', which renews"),
        Linear(2).on(LlamaRotaryEmbedding(config)),
    ):
        pass


def test_remedies_name_their_cost() -> None:
    assert not remedies(plan([Text(10), Image((8, 8))]), CONFIG)
    told = remedies(plan([Text(100), Image((32, 32))]), CONFIG, torch.float32)
    assert told[0].startswith("a budget of 0.4 with positions='compact'")
    assert told[1].startswith("V2PE(1/4)")
    assert told[2].startswith("Linear(2.2)")
    assert "not 2.2" in told[2]
    assert [line.split(",")[0].split("(")[0] for line in told[3:]] == [
        "YaRN",
        "Power",
        "LMInfinite",
    ]
    warned = plan([Text(100), Image((32, 32))]).check(CONFIG, torch.float32)
    assert [line for line in warned if line.startswith("to fit: ")] == [
        f"to fit: {x}" for x in told
    ]
    assert "LMInfinite(512)" in warned[-1]


def test_flips_grow_with_distance() -> None:
    near = plan([Image((4, 4)), Text(1)])
    far = plan([Image((4, 4)), Text(2000)])
    (a,), (b,) = diagnose(near, CONFIG), diagnose(far, CONFIG)
    assert 0 < a.flips < b.flips < 0.6
    assert (a.nearest, a.farthest) == (2, 17)
    assert abs(b.inversions - 0.5) < 0.1
    slow = LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e30},
    )
    assert diagnose(near, slow)[0].flips < a.flips
