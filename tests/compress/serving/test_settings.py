"""Settings of the vLLM plugin."""

from __future__ import annotations

from typing import Any

import pytest

from compress.methods import Duet, ToMe
from compress.serving.vllm.settings import ServingSettings


def test_method_options_keep_and_positions() -> None:
    given = {"method": "duet", "layers": [], "ratios": [], "keep": 64, "positions": "compact"}
    assert ServingSettings.parse(given) == ServingSettings(
        Duet(layers=(), ratios=()), 64, "compact"
    )
    assert ServingSettings.parse({"method": "tome", "keep": 0.25}).method == ToMe()


@pytest.mark.parametrize(
    "keep, counts",
    [
        (64, {576: 64, 10: 10}),
        (1, {576: 1}),
        (0.25, {576: 144, 30: 7, 10: 2, 1: 1}),
        (1.0, {576: 576}),
    ],
)
def test_counts(keep: Any, counts: dict[int, int]) -> None:
    settings = ServingSettings.parse({"keep": keep})
    assert {dense: settings.count(dense) for dense in counts} == counts


@pytest.mark.parametrize(
    "given, words",
    [
        ("duet", "expected an object"),
        ({}, "no 'keep'"),
        ({"keep": 0}, "at least 1"),
        ({"keep": -0.5}, "at least 1"),
        ({"keep": 1.5}, "at least 1"),
        ({"keep": True}, "at least 1"),
        ({"keep": "64"}, "at least 1"),
        ({"keep": None}, "at least 1"),
        ({"keep": float("nan")}, "at least 1"),
        ({"keep": 8, "positions": "home"}, "positions is 'home'"),
        ({"keep": 8, "method": "duett"}, "known methods"),
        ({"keep": 8, "method": 3}, "method is 3"),
        ({"keep": 8, "budget": 64}, "unknown key 'budget'"),
        ({"keep": 8, "method": "random", "seed": "one"}, "seed is 'one'"),
        ({"keep": 8, "method": "duet", "variant": "new"}, "variant is 'new'"),
        ({"keep": 8, "method": "fastv"}, "between decoder layers only"),
        ({"keep": 8, "method": "cascade", "pre_llm": False}, "between decoder layers only"),
        ({"keep": 8, "method": "downsample"}, "smaller images"),
        ({"keep": 8, "method": "pixelprune"}, "smaller images"),
        ({"keep": 8, "method": "tome", "proportional_attention": True}, "log\\(size\\)"),
    ],
)
def test_refusals(given: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ServingSettings.parse(given)


def test_a_request_may_keep_fewer_and_no_more() -> None:
    settings = ServingSettings.parse({"keep": 64})
    assert settings.request_keep({}, 576) == 64
    assert settings.request_keep({"foveate_keep": 0.1}, 576) == 0.1
    assert settings.request_keep({"foveate_keep": 100}, 50) == 100  # keeps all, as the engine does
    with pytest.raises(ValueError, match="keeps 288 of an image's 576 tokens"):
        settings.request_keep({"foveate_keep": 0.5}, 576)
    with pytest.raises(ValueError, match="foveate_keep is 'all'"):
        settings.request_keep({"foveate_keep": "all"}, 576)
