"""The ways that the timings of scoring compare give the same scores."""

from __future__ import annotations

import pytest

from scripts.bench_scoring import Ways, compare
from tests.tiny import CASES
from vlm.families import adapter_of

SHOWN = [("a", 0), ("a", 1)]


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_every_way_is_timed(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    model = case.model()
    before = model.model.config.vision_config._attn_implementation
    row = compare(model, case.media("image", SHOWN), rounds=2, seed=0)
    assert all(len(row[f"{way}_each_ms"]) == 2 for way in ("plain", "scored", "maps", "read"))
    assert model.model.config.vision_config._attn_implementation == before
    if name == "llava":
        assert row["scores_apart"] < 1e-5
    else:
        assert row["scores_apart"] is None  # its encoder gives no maps


def test_scores_are_one_a_token() -> None:
    case = CASES[0]
    call = case.media("image", SHOWN)
    scores = Ways(adapter_of(case.model()), call, clock=lambda: 0.0).scored()
    assert scores.shape == (128,)
