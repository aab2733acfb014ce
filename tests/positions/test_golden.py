"""Ids, cos and sin against golden files, which show changes here or in transformers."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.positions import golden

IDS = json.loads((golden.FOLDER / "ids.json").read_text())
ANGLES = load_file(golden.FOLDER / "angles.safetensors")


@pytest.mark.parametrize("name", golden.SCHEMES)
def test_ids(name):
    dense, merged = golden.plans(name)
    assert dense.positions[:, 0].tolist() == IDS[name]["dense"]
    assert merged.positions[4:7].tolist() == IDS[name]["slots"]
    assert merged.next_position == IDS[name]["next"]


def test_cos_and_sin():
    actual = golden.angles()
    assert actual.keys() == ANGLES.keys()
    for name, expected in ANGLES.items():
        assert torch.allclose(actual[name], expected, atol=1e-6, rtol=0), name


def test_files_cover_every_scheme_and_family():
    assert set(IDS) == set(golden.SCHEMES)
    for family in golden.ROTARY:
        count = sum(name.startswith(f"{family}/") for name in ANGLES)
        assert count == (9 if family == "llama" else len(golden.SCHEMES))
