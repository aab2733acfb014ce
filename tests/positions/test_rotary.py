"""Planned positions on the rotary embeddings and text models of stock transformers classes."""

import dataclasses
import importlib
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from fractions import Fraction

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformers import LlamaConfig, LlamaForCausalLM

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
from tests.positions.hosts import NAMES, SMALL, forward, reduced, text_model

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


def index_of(batch, length, start=0):
    return torch.arange(start, start + length)[None].expand(batch, -1)


def no_hooks(module):
    return not module._forward_hooks and not module._forward_pre_hooks


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


def merged_plan(scheme=MRoPE(), slots=PPE(2)):
    made = plan([Text(3), Image((2, 4)), Text(1), Image((2, 2)), Text(2)], scheme)
    return made.after({1: reduced([0, 0, 1, 1, 0, 0, -1, 1], [0, 3])}, slots)


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


@pytest.mark.parametrize("host", NAMES)
def test_decoding_equals_one_forward(host):
    model = text_model(host)
    made = merged_plan(V2PE(1 / 4) if host == "llama" else MRoPE())
    n = len(made)
    embeds = torch.randn(1, n + 3, 64)
    table = PositionTable.from_plans([made])
    with PlannedRotary(model.rotary_emb).use(table):
        whole = forward(model, embeds, torch.ones(1, n + 3), index_of(1, n + 3))
        first, cache = forward(model, embeds[:, :n], None, index_of(1, n), use_cache=True)
        steps = [first]
        for t in range(n, n + 3):
            step, cache = forward(
                model,
                embeds[:, t : t + 1],
                None,
                index_of(1, 1, start=t),
                use_cache=True,
                past_key_values=cache,
            )
            steps.append(step)
    assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("host", NAMES)
def test_padded_batches_equal_samples_alone(host, side):
    """Different plans, slots and a row of float64 angles in one batch."""
    model = text_model(host)
    scheme = V2PE(1 / 3) if host == "llama" else MRoPE()
    plans = [merged_plan(scheme), plan([Text(4)]), plan([Image((2, 2)), Text(2)], scheme)]
    longest = max(map(len, plans))
    mask = torch.zeros(3, longest, dtype=torch.long)
    embeds = torch.randn(3, longest, 64)
    for row, made in enumerate(plans):
        mask[row, slice(-len(made), None) if side == "left" else slice(len(made))] = 1
    with PlannedRotary(model.rotary_emb).use(PositionTable.from_plans(plans, mask)):
        together = forward(model, embeds, mask, index_of(3, longest))
    for row, made in enumerate(plans):
        here = mask[row].bool()
        with PlannedRotary(model.rotary_emb).use(PositionTable.from_plans([made])):
            alone = forward(
                model, embeds[row][here][None], torch.ones(1, len(made)), index_of(1, len(made))
            )
        assert torch.allclose(together[row, here], alone[0], atol=1e-5)


def test_beams_and_reordered_batches():
    model = text_model("llama")
    plans = [plan([Text(2), Image((1, 3))], V2PE(1 / 4)), plan([Text(5)])]
    embeds = torch.randn(2, 5, 64)
    table = PositionTable.from_plans(plans)
    with PlannedRotary(model.rotary_emb) as planned:
        planned.table = table
        out = forward(model, embeds, torch.ones(2, 5), index_of(2, 5))
        planned.table = table.repeat_interleave(3)
        beams = embeds.repeat_interleave(3, 0)
        wide = forward(model, beams, torch.ones(6, 5), index_of(6, 5))
        planned.table = table.select([1, 0])
        turned = forward(model, embeds.flip(0), torch.ones(2, 5), index_of(2, 5))
        planned.table = table
        with pytest.raises(PositionError, match="table of 2 rows"):
            forward(model, beams, torch.ones(6, 5), index_of(6, 5))
    assert torch.allclose(wide, out.repeat_interleave(3, 0), atol=1e-5)
    assert torch.allclose(turned, out.flip(0), atol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_generate_with_indices(beams):
    """`generate` counts on by itself; tokens past the plan stand behind it."""
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**SMALL)).eval()
    made = plan([Text(3), Image((2, 3)), Text(2)], Compact("all"))
    embeds = torch.randn(1, len(made), 64)
    options = dict(max_new_tokens=4, num_beams=beams, do_sample=False, pad_token_id=0)
    table = PositionTable.from_plans([made])
    with PlannedRotary(model.model.rotary_emb).use(table.repeat_interleave(beams)) as planned:
        got = model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(1, len(made)),
            position_ids=index_of(1, len(made)),
            **options,
        )
        if beams == 1:
            planned.table = table
            tokens = []
            for _ in range(4):
                ids = torch.tensor([tokens], dtype=torch.long)
                more = torch.cat([embeds, model.model.embed_tokens(ids)], 1)
                count = more.shape[1]
                hidden = forward(model.model, more, torch.ones(1, count), index_of(1, count))
                tokens.append(int(model.lm_head(hidden[0, -1]).argmax()))
            assert got[0].tolist() == tokens
    assert got.shape == (1, 4)
    assert no_hooks(model.model.rotary_emb)


def test_a_second_turn_on_the_same_cache():
    model = text_model("qwen2_vl")
    first = merged_plan()
    second = plan([Text(2), Image((2, 2)), Text(1)], MRoPE(), start=first.next_position)
    n, m = len(first), len(second)
    embeds = torch.randn(1, n + m, 64)
    table = PositionTable.from_plans([first])
    both = table.then(PositionTable.from_plans([second]))
    with PlannedRotary(model.rotary_emb) as planned:
        planned.table = table
        _, cache = forward(model, embeds[:, :n], None, index_of(1, n), use_cache=True)
        planned.table = both
        got, _ = forward(
            model,
            embeds[:, n:],
            None,
            index_of(1, m, start=n),
            use_cache=True,
            past_key_values=cache,
        )
        whole = forward(model, embeds, torch.ones(1, n + m), index_of(1, n + m))
    assert torch.allclose(got, whole[:, n:], atol=1e-5)
    with pytest.raises(PositionError, match="expected the same"):
        table.then(table.repeat_interleave(2))


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


CURRENT = ContextVar("current", default=None)


def test_the_source_is_asked_at_each_call():
    module = text_model("qwen2_vl").rotary_emb
    x, index = torch.zeros(1, 1, 32), index_of(1, 12)
    stock = module(x, index.expand(3, 1, -1))
    with PlannedRotary(module, source=CURRENT.get) as planned:
        assert torch.equal(module(x, index.expand(3, 1, -1))[0], stock[0])
        token = CURRENT.set(PositionTable.from_plans([merged_plan()]))
        merged = module(x, index)
        CURRENT.reset(token)
        assert torch.equal(module(x, index.expand(3, 1, -1))[0], stock[0])
        with pytest.raises(PositionError, match="source="):
            planned.table = PositionTable.from_plans([plan([Text(4)])])
    with PlannedRotary(module).use(PositionTable.from_plans([merged_plan()])):
        assert torch.equal(module(x, index)[0], merged[0])
    flat = text_model("llama").rotary_emb
    with PlannedRotary(flat, source=CURRENT.get):
        CURRENT.set(PositionTable.from_plans([merged_plan(slots=None)]))
        with pytest.raises(PositionError, match="reads one axis"):
            flat(x, index)
        CURRENT.set(None)


def test_threads_have_tables_of_their_own():
    """Each thread reaches the module between the two hooks of the others."""
    module = text_model("llama").rotary_emb
    plans = [merged_plan(V2PE(1 / 2**n)) for n in range(4)]
    x, index = torch.zeros(1, 1, 32), index_of(1, 12)
    expected = []
    for made in plans:
        with PlannedRotary(module).use(PositionTable.from_plans([made])):
            expected.append(module(x, index))
    together = threading.Barrier(len(plans), timeout=20)

    def meet(*_):
        together.wait()

    def run(made):
        CURRENT.set(PositionTable.from_plans([made]))
        return module(x, index)

    with PlannedRotary(module, source=CURRENT.get):
        waits = module.register_forward_pre_hook(meet)
        with ThreadPoolExecutor(len(plans)) as pool:
            found = list(pool.map(run, plans))
        waits.remove()
    for got, alone in zip(found, expected, strict=True):
        assert torch.equal(got[0], alone[0]) and torch.equal(got[1], alone[1])
    assert not torch.equal(found[0][0], found[1][0])


@pytest.mark.parametrize("host", ["llama", "qwen2_5_vl"])
def test_decoding_compiles_once(host):
    """With a table for each forward that says so, no index is read and nothing is recompiled."""
    torch._dynamo.reset()
    module, compiled = text_model(host).rotary_emb, CompileCounter()
    forward = torch.compile(module, backend=compiled, fullgraph=True)
    with PlannedRotary(module, source=CURRENT.get):
        for step in range(4):
            made = plan([Text(1)], start=20.5 + step)
            table = PositionTable.from_plans([made])
            CURRENT.set(dataclasses.replace(table, start=10 + step, in_order=True))
            x, index = torch.zeros(1, 1, 32), index_of(1, 1, start=10 + step)
            assert torch.equal(forward(x, index)[0], module(x, index)[0])
        CURRENT.set(None)
    assert compiled.frame_count == 1


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
