"""Schemes that draw or depend on the layout, under a compression and in a recipe."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from compress import compress
from positions import V2PE
from tests.tiny import CASES
from train.recipe_files import load_recipe
from train.reduction import Reducer

CASE = CASES[0]


def positions_of(c: Any, model: Any) -> Tensor:
    """(M,) positions of the visual tokens of one image."""
    with torch.no_grad():
        model(**CASE.inputs(CASE.samples()[:1]))
    positions: Tensor = c.export()[0]["positions"]
    return positions[:, 0, 0]


@pytest.mark.parametrize("method", ["divprune", "duet"])
def test_random_increments_follow_the_generator(method: str) -> None:
    model, runs = CASE.model(), []
    for seed in (1, 1, *range(2, 8)):
        generator = torch.Generator().manual_seed(seed)
        with compress(model, method, budget=16, positions=V2PE("random"), generator=generator) as c:
            runs.append(positions_of(c, model))
    assert torch.equal(runs[0], runs[1])
    assert any(not torch.equal(runs[0], other) for other in runs[2:])


def test_a_recipe_with_automatic_increments_draws_nothing() -> None:
    """64 visual and 10 text tokens fit in 40 positions at 1/4, in every step."""
    model = CASE.model()
    settings = ["positions=v2pe:auto:40", "compress={method: divprune, budget: 16}"]
    reducer = Reducer(model, load_recipe("finetune", settings), 0)
    try:
        for step in range(4):
            reducer.begin(step)
            actual = positions_of(reducer.compression, model)
            kept = reducer.compression.export()[0]["anchor"]
            torch.testing.assert_close(actual, 2 + (kept + 1) / 4, check_dtype=False)
    finally:
        reducer.compression.remove()
