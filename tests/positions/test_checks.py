"""Warnings of `Plan.check`, and none for a valid plan."""

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, Qwen2VLConfig, Qwen3VLConfig

from positions import (
    PPE,
    V2PE,
    Compact,
    Image,
    MRoPE,
    PositionError,
    Text,
    Video,
    from_positions,
    plan,
)
from positions.checks import Host
from tests.positions.hosts import reduced

LLAMA2 = LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 1e4})
QWEN2 = Qwen2VLConfig()
QWEN3 = Qwen3VLConfig()
LLAVA = [Text(30), Image((24, 24)), Text(20)]


def said(made, config, word, dtype=torch.bfloat16):
    lines = made.check(config, dtype)
    assert any(word in line for line in lines), lines
    return lines


def test_a_plain_plan_is_fine():
    assert plan(LLAVA).check(LLAMA2) == []
    assert plan([]).check(LLAMA2) == []
    assert plan([Text(30), Text(5)], MRoPE()).check(QWEN3) == []


def test_window():
    lines = said(plan([Text(2), Image((48, 48))]), LLAMA2, "258 of 2306 tokens stand past it")
    assert "window ends at 2047" in lines[0]
    assert not any("window" in x for x in plan([Image((48, 48))], V2PE(1 / 4)).check(LLAMA2))


@pytest.mark.parametrize(
    ("delta", "dtype", "warns"),
    [
        (1 / 256, torch.bfloat16, True),
        (1 / 128, torch.bfloat16, True),
        (1 / 64, torch.bfloat16, False),
        (1 / 256, torch.float16, False),
        (1 / 1024, torch.float16, True),
        (1 / 256, torch.float32, False),
    ],
)
def test_increments_below_the_dtype(delta, dtype, warns):
    lines = plan(LLAVA, V2PE(delta)).check(LLAMA2, dtype)
    assert any("under the resolution" in line for line in lines) == warns


def test_pairs_that_tell_neighbours_apart():
    """Base 1e6, 64 pairs, bfloat16: none at 1/256, as counted by hand."""
    config = LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    said(plan(LLAVA, V2PE(1 / 256)), config, "0 of 64 rotary pairs")
    said(plan(LLAVA, V2PE(1 / 128)), config, "4 of 64 rotary pairs")


def test_float32_positions_and_angles():
    fine = plan(LLAVA, V2PE(1 / 256), start=65536)
    said(fine, LLAMA2, "exact up to 65536", torch.float32)
    said(plan(LLAVA, start=200_000), LLAMA2, "exact=True", torch.float32)


def test_axis_and_slots_that_the_model_lacks():
    said(plan(LLAVA, MRoPE()), LLAMA2, "one rotary axis")
    merged = plan(LLAVA, MRoPE()).after({1: reduced([0] * 576, [0])}, PPE(3))
    said(merged, QWEN2, "choose a divisor of 8")
    said(merged, LLAMA2, "choose a divisor of 64")


def test_bounds_on_the_base():
    """The slowest T channel of Qwen2-VL turns once in 160 positions; that of Qwen3-VL far later."""
    video = plan([Video((200, 2, 2))], MRoPE())
    said(video, QWEN2, "axis t spans 199 positions; past 160.")
    assert not any("spans" in line for line in video.check(QWEN3))
    said(plan([Text(40000)]), LLAMA2, "soft bound")
    huge = LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 1e7})
    said(plan(LLAVA), huge, "over 1 / float32 resolution")


def test_packing_hazard():
    said(plan(LLAVA, V2PE(1 / 4)), LLAMA2, "token 30 and others")
    assert not any("packed" in line for line in plan(LLAVA).check(LLAMA2))


def test_order():
    said(plan(LLAVA, Compact("all")), LLAMA2, "575 tokens share the position")
    overlap = torch.tensor([0, 1, 2, 3, 4, 2, 3])
    made = from_positions(overlap, [Text(1), Video((4, 1, 1)), Text(2)])
    said(made, LLAMA2, "text token 5 stands at 2, not past 4")
    behind = from_positions(torch.arange(9), next_position=5)
    said(behind, LLAMA2, "behind the prompt's end at 8")
    streams = plan([Text(4), Text(4, stream="answer")], streams={"answer": 0.0})
    assert not any("stands at" in line for line in streams.check(LLAMA2))


def test_mixed_increments():
    layout = [Text(1), Image((2, 2), scheme=V2PE(1 / 4)), Image((2, 2), scheme=V2PE(1 / 2))]
    said(plan(layout), LLAMA2, "steps of 0.25, 0.5")


@pytest.mark.parametrize("name", ["linear", "yarn"])
def test_scaled_frequencies_are_read(name):
    rope = {"rope_type": name, "rope_theta": 1e4, "factor": 4.0}
    if name == "yarn":
        rope["original_max_position_embeddings"] = 2048
    slow = Host.of(LlamaConfig(rope_parameters=rope)).inv_freq.min()
    assert torch.isclose(slow, Host.of(LLAMA2).inv_freq.min() / 4)


def test_configurations():
    assert Host.of(QWEN2).channels.axis.bincount().tolist() == [16, 24, 24]
    assert Host.of(QWEN3).channels.axis[:3].tolist() == [0, 1, 2]
    assert Host.of(Gemma3TextConfig()).base == 1e6
    with pytest.raises(PositionError, match="no rope_parameters"):
        Host.of(object())
