"""`PositionTable`: the index of its first token, and what it knows without asking the device."""

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
    plan,
)
from tests.positions.hosts import merged_plan, reduced, text_model
from tests.positions.syncs import NoSync


def by_hand(positions, start=0, **facts):
    """A table of (B, S) positions, equal on all axes."""
    positions = torch.tensor(positions, dtype=torch.float64)
    return PositionTable(
        positions[..., None, None].expand(-1, -1, 1, 3),
        positions[:, -1] + 1,
        torch.zeros(len(positions), dtype=torch.bool),
        start=start,
        **facts,
    )


def test_indices_count_from_the_start():
    table = by_hand([[5.0, 5.5, 7.0], [2.0, 3.0, 4.0]], start=10)
    index = torch.tensor([[10, 12, 11, 13, 15]])
    assert table.lookup(index)[:, :, 0, 0].tolist() == [[5, 7, 5.5, 8, 10], [2, 4, 3, 5, 7]]
    later = table.then(by_hand([[9.0], [6.0]], start=3))
    assert (later.start, later.length) == (10, 4)
    assert later.lookup(torch.tensor([[13, 14]]))[:, :, 0, 1].tolist() == [[9, 10], [6, 7]]


def test_a_table_in_order_is_returned_as_it_is():
    table = by_hand([[5.0, 5.5], [2.0, 3.0]], start=10, in_order=True)
    assert table.lookup(torch.tensor([[10, 11]])) is table.positions
    with pytest.raises(PositionError, match="2 tokens of one forward"):
        table.lookup(torch.tensor([[10]]))
    assert not table.then(by_hand([[9.0], [6.0]])).in_order


MERGED = plan([Text(1), Image((2, 2))], MRoPE()).after({1: reduced([0] * 4, [0])}, PPE(2))


@pytest.mark.parametrize(
    ("made", "exact", "own_angles", "one_axis"),
    [
        (plan([Text(3)]), None, False, True),
        (plan([Text(3)]), True, True, True),
        (plan([Text(3), Image((2, 2))], V2PE(1 / 3)), None, True, True),
        (plan([Text(3), Image((2, 2))], V2PE(1 / 3)), False, False, True),
        (plan([Text(3), Image((2, 2))], MRoPE()), None, False, False),
        (MERGED, None, True, False),
    ],
)
def test_facts_are_decided_where_the_table_is_made(made, exact, own_angles, one_axis):
    table = PositionTable.from_plans([made], exact=exact)
    assert (table.own_angles, table.one_axis) == (own_angles, one_axis)
    wide = table.repeat_interleave(2).to("cpu")
    assert (wide.own_angles, wide.one_axis) == (own_angles, one_axis)
    both = PositionTable.from_plans([plan([Text(1)])]).then(table)
    assert (both.own_angles, both.one_axis) == (own_angles, one_axis)


def test_slots_that_agree_need_no_own_angles():
    made = plan([Text(1), Image((2, 2))]).after({1: reduced([0] * 4, [0])}, PPE(2))
    table = PositionTable.from_plans([made])
    assert table.own_angles
    same = table.positions[:, :, :1].expand(-1, -1, 2, -1)
    assert not PositionTable(same, table.next_position, table.exact).own_angles


def test_stated_facts_are_not_decided_again():
    with NoSync():
        table = by_hand([[0.0, 1.0]], own_angles=True, one_axis=False)
        table = table.repeat_interleave(2).then(table.repeat_interleave(2))
    assert table.own_angles and not table.one_axis


@pytest.mark.parametrize("scheme", [V2PE(1 / 4), V2PE(1 / 3), MRoPE()])
@pytest.mark.parametrize("slots", [None, PPE(2)])
def test_a_call_of_the_rotary_embedding_waits_for_nothing(scheme, slots):
    module = text_model("qwen2_vl").rotary_emb
    made = plan([Text(3), Image((2, 2))], scheme).after({1: reduced([0, 0, 1, 1], [0, 2])}, slots)
    table = PositionTable.from_plans([made])
    index = torch.arange(len(made) + 2)[None]
    x = torch.zeros(1, 1, 32)
    with PlannedRotary(module, source=lambda: table):
        module(x, index)  # channels are dealt out to slots on the host, once
        with NoSync():
            module(x, index)
            module(x, index[:, -1:])
    with PlannedRotary(module).use(table) as planned, NoSync():
        planned.table = table
        module(x, index)


@pytest.mark.parametrize(
    ("plans", "mask", "says"),
    [
        ([], None, "empty"),
        ([plan([Text(4)])], torch.ones(1, 5), "as many"),
        ([plan([Text(4)])], torch.ones(2, 4), "as many"),
        ([merged_plan(slots=PPE(2)), merged_plan(slots=PPE(4))], None, "slot counts"),
        ([merged_plan(slots=PPE(2)), merged_plan(slots=PPE(2, "strided"))], None, "slot layouts"),
    ],
)
def test_tables_that_do_not_fit_are_refused(plans, mask, says):
    with pytest.raises(PositionError, match=says):
        PositionTable.from_plans(plans, mask)
