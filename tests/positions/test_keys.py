"""Cached keys moved to new positions, against rotating the raw keys there."""

import pytest
import torch
from transformers import DynamicCache

from positions import (
    PPE,
    V2PE,
    ChannelTable,
    MRoPE,
    PlannedRotary,
    PositionError,
    PositionTable,
    Text,
    Video,
    move_cache,
    plan,
    rerotate,
)
from tests.positions.hosts import NAMES, forward, index_of, reduced, text_model


def rotated(module, raw, made):
    """Raw keys (B, H, S, D) as the host rotates them at a plan's positions."""
    with PlannedRotary(module).use(PositionTable.from_plans([made])):
        cos, sin = module(torch.zeros(1, 1, 32), index_of(1, len(made)))
    first, second = raw.chunk(2, -1)
    return raw * cos[:, None] + torch.cat((-second, first), -1) * sin[:, None]


LAYOUT = [Text(3), Video((3, 2, 2)), Text(2)]


@pytest.mark.parametrize("host", NAMES)
def test_moved_keys_equal_keys_rotated_there(host):
    module = text_model(host).rotary_emb
    channels = ChannelTable.of(module)
    scheme = V2PE(1 / 4) if host == "llama" else MRoPE()
    old = plan(LAYOUT, scheme)
    new = plan(LAYOUT, scheme, start=1000)
    raw = torch.randn(2, 3, len(old), 32)
    moved = rerotate(
        rotated(module, raw, old), old.positions, new.positions, module.inv_freq, channels
    )
    assert torch.allclose(moved, rotated(module, raw, new), atol=2e-4)
    back = rerotate(moved, new.positions, old.positions, module.inv_freq, channels)
    assert torch.allclose(back, rotated(module, raw, old), atol=1e-5)
    zero = torch.zeros_like(old.positions)
    unrotated = rerotate(rotated(module, raw, old), old.positions, zero, module.inv_freq, channels)
    assert torch.allclose(unrotated, raw, atol=1e-5)


def test_evicting_a_frame_turns_only_the_time_channels():
    module = text_model("qwen2_vl").rotary_emb
    channels = ChannelTable.of(module)
    old = plan([Text(1), Video((3, 4, 4))], MRoPE())
    keep = torch.cat([torch.arange(17), torch.arange(33, 49)])
    new = plan([Text(1), Video((2, 4, 4))], MRoPE())
    raw = torch.randn(1, 1, len(old), 32)
    cached = rotated(module, raw, old)[:, :, keep]
    moved = rerotate(cached, old.positions[keep], new.positions, module.inv_freq, channels)
    assert torch.allclose(moved, rotated(module, raw[:, :, keep], new), atol=1e-5)
    time = (channels.axis == 0).repeat(2)
    assert torch.equal(moved[..., ~time], cached[..., ~time])
    assert not torch.equal(moved[..., 17:, time], cached[..., 17:, time])


def test_slots_move_too():
    module = text_model("qwen2_vl").rotary_emb
    channels = ChannelTable.of(module).with_slots(2)
    reduction = {1: reduced([0, 0, 1, 1] * 3, [0, 2])}
    old = plan(LAYOUT, MRoPE()).after(reduction, PPE(2))
    new = plan(LAYOUT, MRoPE(), start=50).after(reduction, PPE(2))
    raw = torch.randn(1, 2, len(old), 32)
    moved = rerotate(
        rotated(module, raw, old), old.positions, new.positions, module.inv_freq, channels
    )
    assert torch.allclose(moved, rotated(module, raw, new), atol=2e-5)


def test_pairs_and_unrotated_entries():
    inv_freq = torch.tensor([1.0, 0.1])
    keys = torch.randn(1, 1, 1, 6)
    old, new = torch.zeros(1, 1, 3), torch.full((1, 1, 3), 0.5)
    moved = rerotate(keys, old, new, inv_freq, ChannelTable.flat(2), pairing="neighbours").flatten()
    a, b, c, d, *rest = keys.flatten().tolist()
    cos, sin = torch.tensor([0.5, 0.05]).cos(), torch.tensor([0.5, 0.05]).sin()
    expected = [
        a * cos[0] - b * sin[0],
        b * cos[0] + a * sin[0],
        c * cos[1] - d * sin[1],
        d * cos[1] + c * sin[1],
        *rest,
    ]
    assert torch.allclose(moved, torch.tensor(expected), atol=1e-6)


def test_bfloat16_rounds_once():
    module = text_model("llama").rotary_emb
    old, new = plan([Text(40)], start=30000), plan([Text(40)], start=29744)
    raw = torch.randn(1, 1, 40, 32)
    stored = rotated(module, raw, old).bfloat16()
    moved = rerotate(stored, old.positions, new.positions, module.inv_freq, ChannelTable.flat(16))
    assert moved.dtype == torch.bfloat16
    error = (moved.float() - rotated(module, raw, new)).abs()
    assert float((error / raw.abs().amax()).max()) < 2**-7


@pytest.mark.parametrize("host", NAMES)
def test_a_moved_cache_decodes_like_a_prefill_there(host):
    """One layer, so that no hidden state remembers what was evicted: then moving is exact."""
    model = text_model(host, num_hidden_layers=1)
    old = plan([Text(2), Video((3, 1, 2)), Text(2)], MRoPE() if host != "llama" else V2PE(1 / 4))
    keep = torch.tensor([0, 1, 6, 7, 2, 3, 8, 9])  # the last frame first, the second gone
    new = plan([Text(2), Video((2, 1, 2)), Text(2)], MRoPE() if host != "llama" else V2PE(1 / 4))
    embeds = torch.randn(1, 11, 64)
    with PlannedRotary(model.rotary_emb).use(PositionTable.from_plans([old])):
        _, cache = forward(model, embeds[:, :10], None, index_of(1, 10), use_cache=True)
    move_cache(cache, model.rotary_emb, old.positions, new.positions, keep=keep)
    assert cache.get_seq_length() == 8
    order = torch.cat([keep, torch.tensor([10])])
    with PlannedRotary(model.rotary_emb).use(PositionTable.from_plans([new])):
        step, _ = forward(
            model,
            embeds[:, 10:],
            None,
            index_of(1, 1, start=8),
            use_cache=True,
            past_key_values=cache,
        )
        whole = forward(model, embeds[:, order], None, index_of(1, 9))
    assert torch.allclose(step[:, 0], whole[:, -1], atol=1e-4)


def test_shapes_that_do_not_match_are_refused():
    flat = ChannelTable.flat(2)
    keys, places = torch.zeros(1, 1, 3, 4), torch.zeros(3, 1, 3)
    for old, new in ((places[:2], places), (places, places.expand(3, 2, 3)), (places[:2],) * 2):
        with pytest.raises(PositionError, match="expected"):
            rerotate(keys, old, new, torch.ones(2), flat)
    with pytest.raises(PositionError, match="expected"):
        rerotate(keys, places, places, torch.ones(3), ChannelTable.flat(3))


def test_an_empty_cache_is_left_alone():
    cache = DynamicCache()
    move_cache(cache, text_model("llama").rotary_emb, torch.zeros(0, 1, 3), torch.zeros(0, 1, 3))
    assert cache.get_seq_length() == 0
