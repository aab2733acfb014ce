"""PPE: the members whose positions a merged token keeps, and the channels that read them."""

import pytest
import torch

from positions import (
    PPE,
    Image,
    PositionError,
    Text,
    plan,
)
from tests.positions.hosts import reduced


def slots_of(made, row):
    return made.positions[row, :, 0].tolist()


def test_the_closest_members_are_kept_first():
    """Anchor, then neighbours on the grid, ties to the earlier; not the last in raster order."""
    made = plan([Image((3, 3)), Text(1)]).after({0: reduced([0] * 9, [4])}, PPE(5))
    assert slots_of(made, 0) == [4, 1, 3, 5, 7]
    assert slots_of(made, 1) == [9] * 5


def test_weights_break_ties():
    weight = torch.tensor([8.0, 1, 0, 4, 9, 3, 0, 2, 0])
    made = plan([Image((3, 3))]).after({0: reduced([0] * 9, [4])}, PPE(3), weight={0: weight})
    assert slots_of(made, 0) == [4, 3, 5]
    assert made.weights[0].tolist() == [9, 4, 3]


def test_few_members_are_repeated_heaviest_first():
    weight = torch.tensor([1.0, 3, 2, 0])
    reductions = {0: reduced([0, 0, 0, -1], [0])}
    distance = torch.arange(4.0)
    made = plan([Image((2, 2))]).after(
        reductions, PPE(4), weight={0: weight}, distance={0: distance}
    )
    assert slots_of(made, 0) == [0, 1, 2, 1]
    three = plan([Image((2, 4))]).after({0: reduced([0, 0, 0] + [-1] * 5, [1])}, PPE(8))
    assert slots_of(three, 0) == [1, 0, 2, 1, 0, 2, 1, 0]


def test_distances_may_be_those_of_the_features():
    distance = torch.tensor([0.2, 0.9, 0.0, 0.1])
    made = plan([Image((2, 2))]).after({0: reduced([0] * 4, [2])}, PPE(2), distance={0: distance})
    assert slots_of(made, 0) == [2, 3]


def test_merging_merged_tokens_keeps_the_best_of_each():
    """Half the places of each of two children, where the paper keeps four of eight."""
    first = plan([Image((1, 8))]).after({0: reduced([0, 0, 0, 0, 1, 1, 1, 1], [1, 6])}, PPE(4))
    assert [slots_of(first, row) for row in (0, 1)] == [[1, 0, 2, 3], [6, 5, 7, 4]]
    second = first.after({0: reduced([0, 0], [0])})
    assert second.sizes.tolist() == [8]
    assert slots_of(second, 0) == [1, 6, 0, 5]
    third = second.after({0: reduced([0], [0])})
    assert slots_of(third, 0) == [1, 6, 0, 5]
    distance = torch.tensor([1.0, 0, 9, 9, 9, 2, 3, 9])
    spread = first.after({0: reduced([0, 0], [0])}, distance={0: distance})
    assert slots_of(spread, 0) == [1, 0, 5, 6]  # a measure of the caller's own rules alone


def test_other_segments_keep_their_slots():
    made = plan([Image((1, 3)), Image((1, 2))])
    distance = torch.tensor([0.0, 2, 1])
    reduced_plan = made.after({0: reduced([0, 0, 0], [0])}, PPE(2), distance={0: distance})
    two = reduced_plan.after({1: reduced([0, 0], [0])})
    assert [slots_of(two, row) for row in range(2)] == [[0, 2], [3, 4]]
    with pytest.raises(PositionError, match="after 2 slots"):
        reduced_plan.after({1: reduced([0, 0], [0])}, PPE(1))


def test_experts_lie_on_one_canvas_for_closeness():
    layout = [Image((2, 2), expert="a"), Image((4, 4), expert="b")]
    made = plan(layout).after({(0, 1): reduced([0] * 20, [3])}, PPE(5))
    # The fine cells (2, 2) (2, 3) (3, 2) (3, 3) lie in the coarse cell (1, 1).
    assert slots_of(made, 0) == [3, 4 + 10, 4 + 11, 4 + 14, 4 + 15]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: PPE(0), "slots=0"),
        (lambda: PPE(2, layout="diagonal"), "layout="),
        (
            lambda: plan([Image((1, 3))]).after({0: reduced([0, 0, 0], [0])}, PPE(4)),
            "no more slots than dense tokens",
        ),
        (
            lambda: plan([Image((1, 4))]).after(
                {0: reduced([0, 0, -1, -1], [0])}, PPE(3, repeat=False)
            ),
            "token 0 has 2 members",
        ),
        (
            lambda: plan([Image((1, 2))]).after(
                {0: reduced([0, 0], [0])}, PPE(2), distance={0: torch.zeros(3)}
            ),
            r"one finite number per dense token, \(2,\)",
        ),
    ],
)
def test_bad_slots_are_refused(make, says):
    with pytest.raises(PositionError, match=says):
        make()
