"""Bugs of released code that this package must not have, shown on tiny models.

Each test states what the released code did and asserts what is right. Sources: the public code of
PPE (MouxiaoHuang/PPE, 7b6aa7d), V2PE (OpenGVLab/V2PE, f96f189) and transformers 5.
"""

import copy

import numpy as np
import pytest
import torch

from positions import (
    PPE,
    V2PE,
    Image,
    MRoPE,
    PlannedRotary,
    PositionError,
    PositionTable,
    Text,
    Video,
    plan,
)
from tests.positions.hosts import Reduced, forward, index_of, reduced, text_model


def pairs_of(rows, columns):
    """Merge each two neighbours of a row."""
    assign = torch.arange(rows * columns) // 2
    return Reduced(assign, torch.arange(0, rows * columns, 2))


def angle_at(module, table, index):
    """The rotation of the fastest channel at `index`, as a position modulo 2 pi."""
    with PlannedRotary(module).use(table):
        cos, sin = module(torch.zeros(1, 1, 32), torch.tensor([[index]]))
    return float(torch.atan2(sin[0, 0, 0], cos[0, 0, 0]) % (2 * np.pi))


@pytest.mark.parametrize(("renumber", "last", "following"), [(True, 689, 690), (False, 89, 90)])
def test_decoding_goes_on_behind_the_prompt(renumber, last, following):
    """PPE's baseline renumbered the prompt and decoded at the dense M-RoPE positions: here the
    first generated token would have stood at 90, behind 689, the end of its own prompt."""
    layout = [Text(20), Image((32, 40)), Text(30)]
    made = plan(layout, MRoPE()).after({1: pairs_of(32, 40)}, renumber=renumber)
    assert float(made.positions.max()) == last
    assert made.next_position == following
    module = text_model("qwen2_vl").rotary_emb
    table = PositionTable.from_plans([made])
    for step in range(3):
        expected = (following + step) % (2 * np.pi)
        assert angle_at(module, table, len(made) + step) == pytest.approx(expected, abs=1e-4)


def test_dense_tokens_beside_merged_ones_are_not_scrambled():
    """PPE read a three-row tensor by K-slot sections: 43 of 64 channels saw the wrong axis."""
    model = text_model("qwen2_vl")
    layout = [Text(2), Image((2, 4)), Text(1), Image((3, 3)), Text(2)]
    dense = plan(layout, MRoPE())
    made = dense.after({1: pairs_of(2, 4)}, PPE(2))
    x = torch.zeros(1, 1, 32)
    with PlannedRotary(model.rotary_emb).use(PositionTable.from_plans([made])):
        got = model.rotary_emb(x, index_of(1, len(made)))
    stock = model.rotary_emb(x, dense.positions[:, 0].T.float()[:, None])
    alone = (made.sizes == 1).nonzero().squeeze(1)
    assert len(alone) == 14
    for got_part, stock_part in zip(got, stock, strict=True):
        assert torch.equal(got_part[0, alone], stock_part[0, made.source[alone]])


def test_merging_again_keeps_places_of_both_children():
    """PPE's second merge computed K = 3K / 3K = 1 and kept all ids of one child."""
    first = plan([Text(1), Image((1, 8))], MRoPE()).after(
        {1: reduced([0, 0, 0, 0, 1, 1, 1, 1], [1, 6])}, PPE(4)
    )
    second = first.after({1: reduced([0, 0], [1])})
    kept = set(second.positions[1, :, 2].tolist())
    children = [set(first.positions[row, :, 2].tolist()) for row in (1, 2)]
    assert kept & children[0]
    assert kept & children[1]
    assert int(second.sizes[1]) == 8


@pytest.mark.parametrize("start", [65_536, 131_072, 1_000_000])
def test_v2pe_counts_and_resolves_cells_past_65536(start):
    """V2PE's torch.arange in float32 gave 256 T - 1 numbers there, and many of them alike."""
    tiles, delta = 3, 1 / 256
    first = np.float32(start) + np.float32(delta)
    released = torch.arange(float(first), float(np.float32(start + tiles + delta)), delta).float()
    assert len(released.unique()) < 256 * tiles
    made = plan([Text(1), Image((tiles * 16, 16)), Text(1)], V2PE(delta), start=start)
    cells = made.positions[1:-1, 0, 0]
    assert len(cells) == len(cells.unique()) == 256 * tiles
    assert torch.equal(cells.diff(), torch.full_like(cells[1:], delta))
    assert made.positions[-1, 0, 0] == start + tiles + 1
    module = text_model("llama").rotary_emb
    with PlannedRotary(module).use(PositionTable.from_plans([made])):
        cos, sin = module(torch.zeros(1, 1, 32), index_of(1, len(made)))
    turned = torch.atan2(sin[0, 1:-1, 0], cos[0, 1:-1, 0]).double().diff() % (2 * np.pi)
    assert torch.allclose(turned, torch.full_like(turned, delta), atol=1e-6)


def test_fine_steps_are_not_a_packed_sequence():
    """Without a 2-D mask, transformers takes any step that is not 1 for a new packed sequence and
    lets no later token see what came before."""
    model = text_model("llama")
    made = plan([Text(3), Image((1, 4)), Text(2)], V2PE(1 / 4))
    embeds = torch.randn(1, len(made), 64)
    ids = made.positions[:, 0, 0].float()[None]
    right = forward(model, embeds, torch.ones(1, len(made)), ids)
    assert not torch.allclose(forward(model, embeds, None, ids), right, atol=1e-3)
    with PlannedRotary(model.rotary_emb).use(PositionTable.from_plans([made])):
        planned = forward(model, embeds, None, index_of(1, len(made)))
    assert torch.equal(planned, right)


def test_several_samples_videos_and_text_between_them():
    """PPE took one sample of one video, and would have cut the text between two."""
    layout = [Text(1), Video((2, 2, 2)), Text(3), Image((2, 2)), Text(1), Video((1, 2, 2)), Text(1)]
    made = plan(layout, MRoPE()).after({1: pairs_of(4, 2), 5: pairs_of(2, 2)}, PPE(2))
    assert [len(made.rows(index)) for index in range(7)] == [1, 4, 3, 4, 1, 2, 1]
    table = PositionTable.from_plans([made, plan([Text(2)])])
    assert table.positions.shape == (2, len(made), 2, 3)


def test_v2pe_without_images():
    """V2PE's ids failed with IndexError on a text-only sample."""
    assert plan([Text(4)], V2PE(1 / 4)).positions[:, 0, 0].tolist() == [0, 1, 2, 3]


def test_the_configuration_is_left_as_it_was():
    """PPE and V2PE rewrote config.rope_scaling at run time."""
    model = text_model("qwen2_vl")
    before, state = copy.deepcopy(model.config.to_dict()), dict(vars(model.rotary_emb))
    made = plan([Text(1), Image((2, 2)), Text(1)], MRoPE()).after({1: pairs_of(2, 2)}, PPE(2))
    with PlannedRotary(model.rotary_emb).use(PositionTable.from_plans([made])):
        forward(model, torch.randn(1, len(made), 64), None, index_of(1, len(made)))
        assert model.config.to_dict() == before
    assert model.config.to_dict() == before
    assert vars(model.rotary_emb) == state


def test_positions_are_not_held_in_the_models_dtype():
    """bfloat16 holds whole numbers to 256: positions rounded to it would stand 4 apart at 1000."""
    module = text_model("llama").to(torch.bfloat16).rotary_emb
    made = plan([Text(1000), Image((1, 8)), Text(1)], V2PE(1 / 4))
    with PlannedRotary(module).use(PositionTable.from_plans([made])):
        cos, _ = module(torch.zeros(1, 1, 32, dtype=torch.bfloat16), index_of(1, len(made)))
    assert cos.dtype == torch.bfloat16
    exact = made.positions[:, :1, 0].cos()
    assert torch.allclose(cos[0, :, :1].double(), exact, atol=2**-8)


def test_tokens_cannot_come_in_the_order_of_their_scores():
    """PPE emitted merged tokens by density, so that positions went back and forth."""
    with pytest.raises(PositionError, match="sort the reduction's rows"):
        plan([Image((1, 4))]).after({0: reduced([1, 1, 0, 0], [2, 0])})


def test_the_choice_of_slots_is_the_same_every_time():
    """PPE sorted with torch.sort, which leaves the order of equals open."""
    made = plan([Image((8, 8))])
    all_alike = {0: reduced([0] * 64, [27])}
    far = {0: torch.zeros(64)}
    first = made.after(all_alike, PPE(8), distance=far).positions
    assert first[0, :, 0].tolist() == [27, 0, 1, 2, 3, 4, 5, 6]
    assert torch.equal(first, made.after(all_alike, PPE(8), distance=far).positions)
