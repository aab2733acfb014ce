"""The budget for a time to the first token, from times that the test makes up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from compress.latency import SHARES, Latency
from tests import tiny

TIMES = dict(zip(SHARES, (20.0, 19.0, 40.0, 80.0, 160.0), strict=True))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Budgets that were timed."""
    budgets: list[float] = []

    def measure(model: Any, call: Any, method: Any, share: float, **options: Any) -> Any:
        budgets.append(share)
        slow = 1.5 if call["input_ids"].shape[0] == 2 else 1.0
        return SimpleNamespace(reduced=SimpleNamespace(first=slow * TIMES[share]))

    monkeypatch.setattr("compress.latency.measure", measure)
    return budgets


def test_the_largest_budget_in_time(asked: list[float]) -> None:
    model, call = tiny.llava(), tiny.images_and_text(1)
    fits = [Latency(ms, [call]).fit(model, "divprune") for ms in (20, 30, 80, 100, 500)]
    shares = [1 / 8, 1 / 8 + 1 / 16, 1 / 2, 1 / 2 + 1 / 8, 1.0]
    assert [fit.budget for fit in fits] == pytest.approx(shares)
    assert [fit.predicted for fit in fits] == [20, 30, 80, 100, 160]
    assert asked == list(SHARES)  # measured once
    Latency(80, [call]).fit(model, "duet")
    assert len(asked) == 2 * len(SHARES)


def test_the_slowest_call_counts(asked: list[float]) -> None:
    calls = [tiny.images_and_text(1), tiny.images_and_text(2)]
    assert Latency(120, calls).fit(tiny.llava(), "divprune").budget == pytest.approx(0.5)


def test_what_cannot_be_reached_is_refused(asked: list[float]) -> None:
    call = tiny.images_and_text(1)
    with pytest.raises(ValueError, match=r"ms is 19.*takes 20 ms to the first token"):
        Latency(19, [call]).fit(tiny.llava(), "divprune")
    with pytest.raises(ValueError, match="ms is 0"):
        Latency(0, [call])
    with pytest.raises(ValueError, match="calls is empty"):
        Latency(10, [])
