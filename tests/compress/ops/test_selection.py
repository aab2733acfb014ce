"""Ranking, selecting and spreading of indices."""

from __future__ import annotations

import torch

from compress import ops


def test_rank_breaks_ties_by_index():
    scores = torch.tensor([[1.0, 3.0, 3.0, 0.0, 3.0]])
    assert ops.rank(scores).tolist() == [[1, 2, 4, 0, 3]]
    assert ops.top(scores, 2).tolist() == [[1, 2]]


def test_others_ascend():
    assert ops.others(torch.tensor([[3, 0], [1, 4]]), 5).tolist() == [[1, 2, 4], [0, 2, 3]]


def test_spread():
    assert ops.spread(9, 3, torch.device("cpu")).tolist() == [1, 4, 7]
    assert ops.spread(5, 5, torch.device("cpu")).tolist() == [0, 1, 2, 3, 4]


def test_by_quota():
    scores = torch.tensor([[[1.0, 5.0, 3.0], [9.0, 8.0, 7.0], [0.0, -torch.inf, 2.0]]])
    quota = torch.tensor([[0.2, 3.6, 1.2]])
    assert sorted(ops.by_quota(scores, quota, 5)[0].tolist()) == [1, 3, 4, 5, 8]
    few = ops.by_quota(scores, quota, 2)  # fewer than frames: no frame is sure of one
    assert few.tolist() == [[3, 4]]
    full = ops.by_quota(scores, quota, 9)[0].tolist()
    assert full[-1] == 7
