"""Reductions of a plan's segments: which fit, and what they keep."""

import pytest
import torch

from positions import PPE, Image, MRoPE, PositionError, Text, Video, plan
from tests.positions.hosts import Reduced, reduced


def test_one_reduction_of_several_segments():
    made = plan([Video((1, 1, 2)), Text(1), Video((1, 1, 2)), Text(1)])
    after = made.after({(0, 2): reduced([0, 1, 1, 0], [0, 2])})
    assert after.source.tolist() == [0, 2, 3, 5]
    assert after.row_of.tolist() == [0, 2, 1, 2, 0, 3]


def test_a_reduction_may_have_a_batch_axis_of_one():
    """As `compress.reduce` returns it; the same plan as without the axis, slots included."""
    made = plan([Text(2), Image((2, 2)), Text(1)], MRoPE())
    flat = reduced([0, 0, 1, -1], [0, 2])
    batch = Reduced(flat.assign[None], flat.anchor[None])
    for slots in (None, PPE(2)):
        flat_plan, other = made.after({1: flat}, slots), made.after({1: batch}, slots)
        assert torch.equal(flat_plan.row_of, other.row_of)
        assert torch.equal(flat_plan.positions, other.positions)
    two = Reduced(batch.assign.expand(2, -1), batch.anchor.expand(2, -1))
    with pytest.raises(PositionError, match=r"a batch of 2; expected the reduction of one sample"):
        made.after({1: two})
    with pytest.raises(PositionError, match="do not fit"):
        made.after({1: Reduced(batch.assign[0], batch.anchor)})


@pytest.mark.parametrize(
    ("key", "assign", "anchor", "says"),
    [
        (1, [0, 0], [0], r"expected \(4,\)"),
        (1, [0, 0, 0, 1], [0], "do not fit"),
        (1, [0, 0, 0, -2], [0], "do not fit"),
        (1, [0, 0, 0, -1], [3], "do not fit"),
        (1, [0, 0, 0, 0], [4], "do not fit"),
        (1, [1, 0, 0, 0], [1, 0], "ascending"),
        (0, [0, -1], [0], "never reduced"),
        (5, [0], [0], "expected 0 to 2"),
        ((1, 1), [0] * 8, [0], "twice"),
    ],
)
def test_reductions_that_do_not_fit_are_refused(key, assign, anchor, says):
    made = plan([Text(2), Image((2, 2)), Text(1)])
    with pytest.raises(PositionError, match=says):
        made.after({key: reduced(assign, anchor)})


def test_renumbering_keeps_streams_apart():
    layout = [Text(2), Image((1, 4)), Text(2, stream="answer")]
    made = plan(layout, streams={"answer": 100.0})
    after = made.after({1: reduced([0, 0, -1, -1], [1])}, renumber=True)
    assert after.positions[:, 0, 0].tolist() == [0, 1, 2, 100, 101]
    assert after.next_position == 102
    assert after.streams == {"main": (0, 3), "answer": (100, 102)}


def test_slots_and_renumbering_exclude_each_other():
    made = plan([Image((2, 2))])
    with pytest.raises(PositionError, match="one or the other"):
        made.after({0: reduced([0, 0, 1, 1], [0, 2])}, PPE(2), renumber=True)
