"""Planned positions on the rotary embeddings and text models of stock transformers classes."""

from __future__ import annotations

import importlib
import math
from fractions import Fraction

import pytest
import torch

from positions import (
    PPE,
    V2PE,
    ChannelTable,
    Compact,
    Image,
    MRoPE,
    PlannedRotary,
    PositionError,
    PositionTable,
    Text,
    Video,
    plan,
)
from positions import rotary as rotary_module
from tests.positions.hosts import (
    NAMES,
    forward,
    index_of,
    merged_plan,
    no_hooks,
    reduced,
    text_model,
)

PI = Fraction("3.14159265358979323846264338327950288419716939937510")
ROPES = {
    "default": {},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("host", NAMES)
def test_identity_plan_is_bit_equal_to_stock(host, rope, dtype):
    """Also with frequencies scaled, and with dynamic scaling past the trained window."""
    short = {"max_position_embeddings": 8} if rope == "dynamic" else {}
    model = text_model(host, rope=ROPES[rope], **short).to(dtype)
    other = text_model(host, rope=ROPES[rope], **short).to(dtype)
    embeds = torch.randn(2, 11, 64).to(dtype)
    mask = torch.ones(2, 11, dtype=torch.long)
    mask[1, :4] = 0
    stock_ids = (mask.cumsum(-1) - 1).clamp(min=0)
    plans = [plan([Text(3), Image((2, 3)), Text(2)]), plan([Text(7)])]
    with PlannedRotary(model.rotary_emb).use(PositionTable.from_plans(plans, mask)):
        planned = forward(model, embeds, mask, index_of(2, 11))
    real = mask.bool()
    assert torch.equal(planned[real], forward(other, embeds, mask, stock_ids)[real])
    assert no_hooks(model.rotary_emb)
    assert torch.equal(
        forward(model, embeds, mask, stock_ids), forward(other, embeds, mask, stock_ids)
    )


@pytest.mark.parametrize(
    ("host", "scheme"),
    [
        *((host, scheme) for host in NAMES for scheme in (V2PE(1 / 16), Compact("row"))),
        *((host, MRoPE()) for host in NAMES[1:]),
    ],
)
def test_planned_positions_equal_positions_handed_over(host, scheme):
    model = text_model(host)
    made = plan([Text(3), Image((2, 3)), Text(1), Video((2, 1, 2)), Text(2)], scheme)
    embeds = torch.randn(1, len(made), 64)
    real = made.positions[:, 0].T.float()[:, None]
    by_hand = forward(model, embeds, torch.ones(1, len(made)), real[0] if host == "llama" else real)
    with PlannedRotary(model.rotary_emb).use(PositionTable.from_plans([made])):
        planned = forward(model, embeds, torch.ones(1, len(made)), index_of(1, len(made)))
    assert torch.equal(planned, by_hand)
    sequential = forward(model, embeds, torch.ones(1, len(made)), index_of(1, len(made)))
    assert not torch.allclose(planned, sequential, atol=1e-3)


@pytest.mark.parametrize("rope", ["default", "yarn", "linear", "llama3"])
@pytest.mark.parametrize("host", NAMES)
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
def test_slots_reach_cos_and_sin(host, layout, rope):
    """Merged tokens get the channel-wise definition; all others stay bit-equal to stock."""
    module = text_model(host, rope=ROPES[rope]).rotary_emb
    made = merged_plan(V2PE(1 / 4) if host == "llama" else MRoPE(), PPE(2, layout))
    x = torch.zeros(1, 1, 32)
    ids = made.positions[:, 0].T.float()[:, None]
    stock = module(x, ids[0] if host == "llama" else ids)
    with PlannedRotary(module).use(PositionTable.from_plans([made])) as planned:
        got = module(x, index_of(1, len(made)))
        channels = planned.channels.with_slots(2, layout)
    merged = torch.tensor([False] * 3 + [True] * 2 + [False] * 7)
    scale = module.attention_scaling
    for c in range(16):
        place = made.positions[:, channels.slot[c], channels.axis[c]]
        angle = place * module.inv_freq[c].double()
        for got_part, function in zip(got, (torch.cos, torch.sin), strict=True):
            for entry in (c, c + 16):
                expected = function(angle) * scale
                assert torch.allclose(got_part[0, :, entry].double(), expected, atol=2e-6)
    for got_part, stock_part in zip(got, stock, strict=True):
        assert torch.equal(got_part[0, ~merged], stock_part[0, ~merged])
        assert not torch.equal(got_part[0, merged], stock_part[0, merged])


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("cohere", ("CohereConfig", "CohereRotaryEmbedding")),
        ("glm", ("GlmConfig", "GlmRotaryEmbedding")),
        ("gemma3", ("Gemma3TextConfig", "Gemma3RotaryEmbedding")),
        ("phi3", ("Phi3Config", "Phi3RotaryEmbedding")),
        ("qwen3", ("Qwen3Config", "Qwen3RotaryEmbedding")),
        ("qwen2_vl", ("Qwen2VLTextConfig", "Qwen2VLRotaryEmbedding")),
        ("qwen2_5_vl", ("Qwen2_5_VLTextConfig", "Qwen2_5_VLRotaryEmbedding")),
        ("qwen3_vl", ("Qwen3VLTextConfig", "Qwen3VLTextRotaryEmbedding")),
        ("qwen3_5", ("Qwen3_5TextConfig", "Qwen3_5TextRotaryEmbedding")),
        ("ernie4_5_vl_moe", ("Ernie4_5_VLMoeTextConfig", "Ernie4_5_VLMoeTextRotaryEmbedding")),
    ],
)
def test_own_angles_match_stock_in_other_families(family, names):
    """Halves and pairs, partial heads, several layer types, channels out of order."""
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    rotary_emb = getattr(module, names[1])(getattr(module, names[0])())
    axes = ChannelTable.of(rotary_emb).axes
    scheme = MRoPE() if axes == 3 else V2PE(1 / 4)
    made = plan([Text(20), Image((2, 3)), Text(20)], scheme)
    kwargs = {"layer_type": "full_attention"} if family == "gemma3" else {}
    x = torch.zeros(1, 1, 8)
    ids = made.positions[:, 0].T.float()[:, None]
    stock = rotary_emb(x, ids if axes == 3 else ids[0], **kwargs)
    for exact in (True, False):
        with PlannedRotary(rotary_emb).use(PositionTable.from_plans([made], exact=exact)):
            got = rotary_emb(x, index_of(1, len(made)), **kwargs)
        for got_part, stock_part in zip(got, stock, strict=True):
            assert torch.allclose(got_part, stock_part, atol=1e-5 if exact else 0, rtol=0)


@pytest.mark.parametrize("exact", [None, True])
def test_positions_are_exact_to_two_to_the_24_in_steps_of_1_256(exact):
    """Against exact fractions; float32 positions would give neighbours the same angle."""
    module = text_model("llama").rotary_emb
    start = 2**24 - 3
    made = plan([Text(1), Image((2, 256)), Text(1)], V2PE(1 / 256), start=start)
    table = PositionTable.from_plans([made], exact=exact)
    with PlannedRotary(module).use(table):
        cos, _ = module(torch.zeros(1, 1, 32), index_of(1, len(made)))
    assert made.positions[1, 0, 0] == start + 1 / 256
    for token in (0, 1, 2, 255, 512, 513):
        place = Fraction(float(made.positions[token, 0, 0]))
        turns = [place * Fraction(float(f)) % (2 * PI) for f in module.inv_freq]
        expected = [math.cos(turn) for turn in turns]
        assert torch.allclose(cos[0, token, :16], torch.tensor(expected), atol=2e-7)
    assert len(cos[0, 1:258, 0].unique()) == 257


def test_stock_angles_can_be_kept():
    made = plan([Text(1), Image((1, 3)), Text(1)], V2PE(1 / 3))
    module = text_model("llama").rotary_emb
    x = torch.zeros(1, 1, 32)
    stock = module(x, made.positions[:, 0, 0].float()[None])
    with PlannedRotary(module).use(PositionTable.from_plans([made], exact=False)):
        assert torch.equal(module(x, index_of(1, 5))[0], stock[0])


def test_a_long_plan_is_never_turned_into_angles_whole(monkeypatch):
    module = text_model("llama").rotary_emb
    made = plan([Text(9), Image((1000, 1000)), Text(9)], V2PE(1 / 256), start=70000)
    asked = []
    whole = ChannelTable.angles

    def watched(self, positions, inv_freq):
        asked.append(len(positions))
        return whole(self, positions, inv_freq)

    monkeypatch.setattr(ChannelTable, "angles", watched)
    monkeypatch.setattr(rotary_module, "BLOCK", 64)
    with PlannedRotary(module).use(PositionTable.from_plans([made])):
        cos, _ = module(torch.zeros(1, 1, 32), index_of(1, 100, start=500_000))
        later, _ = module(torch.zeros(1, 1, 32), index_of(1, 3, start=len(made)))
    assert cos.shape == (1, 100, 32)
    assert asked == [64, 36, 3]
    expected = ((made.next_position + torch.arange(3.0)) * float(module.inv_freq[0])).cos()
    assert torch.allclose(later[0, :, 0].double(), expected.double(), atol=2e-3)


def test_an_axis_that_the_host_lacks_is_refused():
    model = text_model("llama")
    with pytest.raises(PositionError, match="reads one axis"):
        PlannedRotary(model.rotary_emb).use(
            PositionTable.from_plans([plan([Image((2, 2))], MRoPE())])
        )
    assert no_hooks(model.rotary_emb)


def test_slots_that_do_not_divide_the_host_are_refused():
    model = text_model("qwen2_vl")
    with pytest.raises(PositionError, match=r"sections \[4, 6, 6\]; choose a divisor of 2"):
        PlannedRotary(model.rotary_emb).use(PositionTable.from_plans([merged_plan(slots=PPE(4))]))
    assert no_hooks(model.rotary_emb)


def test_an_interleaved_layout_is_known_from_the_first_position():
    """At position 0 cos is 1 everywhere, whichever two entries are of one channel."""
    module = importlib.import_module("transformers.models.cohere.modeling_cohere")
    rotary_emb = module.CohereRotaryEmbedding(module.CohereConfig())
    made = plan([Image((1, 2))]).after({0: reduced([0, 0], [0])}, PPE(2, "strided"))
    with PlannedRotary(rotary_emb).use(PositionTable.from_plans([made])) as planned:
        cos, _ = rotary_emb(torch.zeros(1, 1, 8), index_of(1, 1))
        channels = planned.channels.with_slots(2, "strided")
    angles = channels.angles(made.positions[:1], rotary_emb.inv_freq)
    assert torch.allclose(cos[0, 0], angles[0].cos().float().repeat_interleave(2), atol=1e-6)


def test_wrong_use_is_refused():
    model = text_model("llama")
    embeds = torch.randn(1, 4, 64)
    with PlannedRotary(model.rotary_emb) as planned:
        with pytest.raises(PositionError, match="already"):
            PlannedRotary(model.rotary_emb)
        assert torch.equal(
            forward(model, embeds), forward(text_model("llama"), embeds)
        )  # without a table
        planned.table = PositionTable.from_plans([plan([Text(4)])])
        with pytest.raises(PositionError, match="integer"):
            forward(model, embeds, torch.ones(1, 4), torch.arange(4.0)[None])
    planned.remove()
    assert no_hooks(model.rotary_emb)
    with pytest.raises(PositionError, match="no inv_freq"):
        PlannedRotary(torch.nn.Linear(2, 2))


def test_an_exception_leaves_no_trace():
    model = text_model("llama")
    made = plan([Text(4)])
    with (
        pytest.raises(RuntimeError),
        PlannedRotary(model.rotary_emb).use(PositionTable.from_plans([made])),
    ):
        raise RuntimeError
    assert no_hooks(model.rotary_emb)
