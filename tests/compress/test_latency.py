"""The budget for a time to the first token, from times that the test makes up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from compress import Latency, compress
from compress.latency import BUDGETS
from compress.runtime import attach
from tests import tiny

TIMES = dict(zip(map(str, BUDGETS), (20.0, 19.0, 40.0, 80.0, 160.0), strict=True))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Budgets that were timed."""
    budgets: list[float] = []

    def first_token(compression: Any, call: Mapping[str, torch.Tensor], repeats: int) -> float:
        budgets.append(compression.settings.budget)
        slow = 1.5 if call["input_ids"].shape[0] == 2 else 1.0
        return slow * TIMES[str(compression.settings.budget)]

    monkeypatch.setattr(attach, "first_token", first_token)
    return budgets


def test_the_largest_budget_in_time(asked: list[float]) -> None:
    model, call = tiny.llava(), tiny.images_and_text(1)
    with compress(model, "divprune", Latency(20, [call])) as attached:
        for ms, share in ((30, 3 / 16), (80, 1 / 2), (100, 5 / 8), (500, 1.0), (20, 1 / 8)):
            attached.set_budget(Latency(ms, [call]))
            assert attached.latency is not None
            assert attached.settings.budget == attached.latency.budget == pytest.approx(share)
            assert attached.latency.predicted == min(ms, 160)
        assert asked == list(BUDGETS)  # measured once
        with pytest.raises(ValueError, match=r"ms is 19, .* takes 20 ms here"):
            attached.set_budget(Latency(19, [call]))
        assert attached.settings.budget == pytest.approx(1 / 8)
        attached.set_budget(4)
        assert attached.latency is None
    with compress(model, "duet", Latency(80, [call])):
        assert len(asked) == 2 * len(BUDGETS)
    with pytest.raises(ValueError, match="expected at least that"):
        compress(model, "duet", Latency(1, [call]))
    compress(model, "duet", 4).remove()  # nothing was left behind


def test_one_token_is_the_least(asked: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TIMES, "0.125", 30.0)
    call = tiny.images_and_text(1)
    with compress(tiny.llava(), "divprune", Latency(20, [call])) as attached:
        assert attached.settings.budget == 1


def test_the_slowest_call_counts(asked: list[float]) -> None:
    calls = [tiny.images_and_text(1), tiny.images_and_text(2)]
    with compress(tiny.llava(), "divprune", Latency(120, calls)) as attached:
        assert attached.settings.budget == pytest.approx(0.5)


def test_bad_targets() -> None:
    call = tiny.images_and_text(1)
    for ms, calls, repeats in ((0, [call], 1), (10, [], 1), (10, [call], 0)):
        with pytest.raises(ValueError, match="Latency: "):
            Latency(ms, calls, repeats)


def test_the_report_says_what_it_was() -> None:
    model, call = tiny.llava(), tiny.images_and_text(1)
    generator = torch.Generator().manual_seed(3)
    drawn = generator.get_state()
    with compress(model, "random", Latency(1e6, [call], 1), generator=generator) as attached:
        assert torch.equal(generator.get_state(), drawn)
        model.generate(**call, max_new_tokens=2)
        report = attached.report()
    assert report.latency is not None and report.first is not None
    assert report.latency.budget == 1.0 and report.first > 0
    assert "first token: 1e+06 ms asked for" in str(report)
    assert report.reduced.reduce is not None and report.first > report.reduced.reduce
