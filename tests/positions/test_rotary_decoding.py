"""Planned positions in decoding, in padded batches, with beams and in later turns."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from positions import (
    V2PE,
    Compact,
    Image,
    MRoPE,
    PlannedRotary,
    PositionError,
    PositionTable,
    Text,
    plan,
)
from tests.positions.hosts import (
    NAMES,
    SMALL,
    forward,
    index_of,
    merged_plan,
    no_hooks,
    text_model,
)


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
