"""Symbols represent the content of a scene."""

from __future__ import annotations

import itertools

import torch

from train.mini.data import (
    PIXELS,
    SYMBOLS,
)
from train.mini.modules import Symbols
from vlm.embedded.scenes import FIELDS, cell_labels, make_scene


def test_a_blend_changes_one_field_of_items_alone() -> None:
    torch.manual_seed(0)
    symbols = Symbols(16, 1.0)
    fields = torch.from_numpy(cell_labels(make_scene(3)))[None].expand(3, -1, -1)
    shape = list(FIELDS).index("shape")
    told = symbols(fields, torch.tensor([PIXELS, SYMBOLS, shape]))
    assert torch.equal(told[0], symbols(fields[:1])[0]) and torch.equal(told[0], told[1])
    changed = (told[2] != told[0]).any(1)
    assert changed.any() and not changed[fields[0, 0] != 1].any()
    table = list(symbols.parameters())[shape]
    rest = (told[2] - told[0] + table[fields[0, shape]])[changed]  # what stands for the shape
    pairs = torch.stack([a + b for a, b in itertools.combinations(table[1:], 2)]) / 2**0.5
    assert torch.cdist(rest, pairs).min(1).values.max() < 0.01  # what cdist is exact to
