"""What a plan records of its tokens and segments."""

import pytest

from positions import Image, PositionError, Text, plan
from tests.positions.hosts import reduced


def test_tokens_know_their_segment_and_their_members():
    made = plan([Text(2), Image((2, 2)), Text(1)])
    after = made.after({1: reduced([0, -1, 0, 1], [0, 3])})
    assert made.bounds.tolist() == [0, 2, 6, 7]
    assert after.segment_of.tolist() == [0, 0, 1, 1, 2]
    assert after.index_in_segment.tolist() == [0, 1, 0, 3, 0]
    assert after.sizes.tolist() == [1, 1, 2, 1, 1]
    assert after.rows(1).tolist() == [2, 3]
    with pytest.raises(PositionError, match="segment 3: expected 0 to 2"):
        after.rows(3)
