"""A plan takes the result of `reduce`, and gives the positions of an attached compression."""

from __future__ import annotations

import pytest
import torch

from compress import compress, reduce
from positions import V2PE, Image, PositionError, Text, plan
from tests.tiny import CASES

CASE = CASES[0]


def test_a_plan_takes_the_reduction_of_one_input() -> None:
    """The same as its tensors without the batch; a reduction of two inputs is refused."""
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(2, 64, 8, generator=draw)
    layout = plan([Text(3), Image((8, 8)), Text(7)], scheme=V2PE(1 / 4))
    reduction = reduce(features[:1], "divprune", 16, grid=(8, 8))
    reduced = layout.after({1: reduction})
    assert len(reduced) == 3 + 16 + 7
    positions = torch.as_tensor(reduced.positions)[3:19, 0, 0]
    torch.testing.assert_close(positions, 2 + (reduction.anchor[0] + 1) / 4, check_dtype=False)
    with pytest.raises((PositionError, ValueError), match=r"(?i)batch|inputs|one"):
        layout.after({1: reduce(features, "divprune", 16, grid=(8, 8))})


def test_an_attached_compression_follows_the_plan() -> None:
    model, sample = CASE.model(), CASE.samples()[0]
    with torch.no_grad(), compress(model, "divprune", 16, positions=V2PE(1 / 4)) as c:
        model(**CASE.inputs([sample]))
        exported = c.export()[0]
    actual = exported["positions"][:, 0, 0]
    torch.testing.assert_close(actual, 2 + (exported["anchor"] + 1) / 4, check_dtype=False)
