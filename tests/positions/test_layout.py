"""Layouts, their errors, and reading them off token ids."""

import pytest
import torch

from positions import Image, PositionError, Text, Video, layout_of


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Text(-1), "length=-1"),
        (lambda: Text(2.0), r"length=2\.0"),
        (lambda: Image((3,)), r"grid=\(3,\)"),
        (lambda: Image((3, 0)), r"grid=\(3, 0\)"),
        (lambda: Image(9), "grid=9"),
        (lambda: Video((2, 3)), r"\(t, h, w\)"),
        (lambda: Video((2, 3, 3), times=(0.0,)), "2 finite time stamps"),
        (lambda: Video((2, 3, 3), times=(1.0, 0.5)), "in ascending order"),
        (lambda: Video((2, 3, 3), times=float("nan")), "seconds per step"),
    ],
)
def test_bad_segments_are_named(make, says):
    with pytest.raises(PositionError, match=says):
        make()


def test_layout_is_read_off_ids():
    image, video = 90, 91
    ids = torch.tensor([1, 2, *[image] * 4, 3, *[video] * 2, 4, *[video] * 4, *[image] * 2])
    items = {image: [Image((2, 2)), Image((1, 2))], video: [Video((3, 1, 2), (0.0, 1.0, 2.0))]}
    segments, keys = layout_of(ids, items)
    assert segments == [
        Text(2),
        Image((2, 2)),
        Text(1),
        Video((1, 1, 2), (0.0,)),
        Text(1),
        Video((2, 1, 2), (1.0, 2.0)),
        Image((1, 2)),
    ]
    assert keys == [(1,), (3, 5), (6,)]


def test_adjacent_inputs_share_a_run():
    segments, keys = layout_of(torch.tensor([9, 9, 9, 1]), {9: [Image((1, 2)), Image((1, 1))]})
    assert segments == [Image((1, 2)), Image((1, 1)), Text(1)]
    assert keys == [(0,), (1,)]


@pytest.mark.parametrize(
    ("ids", "items", "says"),
    [
        ([1, 9, 9], [Image((1, 3))], "run of 2 tokens of placeholder 9"),
        ([1, 9, 9, 9], [Image((1, 2))], "1 tokens of placeholder 9 more"),
        ([1, 9, 9], [Image((1, 2)), Image((1, 1))], "1 inputs of placeholder 9 have no tokens"),
        ([9, 9, 9], [Video((2, 1, 2))], "whole steps"),
        ([1, 2], [Image((1, 2))], "no tokens"),
    ],
)
def test_ids_that_do_not_match_are_refused(ids, items, says):
    with pytest.raises(PositionError, match=says):
        layout_of(torch.tensor(ids), {9: items})


def test_batched_ids_are_refused():
    with pytest.raises(PositionError, match="one sample"):
        layout_of(torch.zeros(2, 3).long(), {})
