"""Budgets that give each visual input a count of its own."""

from __future__ import annotations

import pytest

from compress.adaptive import Coverage, Shared
from compress.parse import parse_any_budget

GAINS = [[0.9, 0.05, 0.03, 0.02], [0.4, 0.3, 0.2, 0.1], [1.0]]


def test_coverage_takes_as_many_as_it_needs() -> None:
    assert Coverage(0.9).counts(GAINS, []) == [1, 3, 1]
    assert Coverage(0.96).counts(GAINS, []) == [3, 4, 1]
    assert Coverage(1).counts(GAINS, []) == [4, 4, 1]
    assert Coverage(1e-9).counts(GAINS, []) == [1, 1, 1]


def test_a_shared_budget_is_spent_exactly_where_it_adds_most() -> None:
    assert Shared(2).counts(GAINS, [2, 2, 1]) == [1, 3, 1]
    assert Shared(2).counts(GAINS, [2, 4, 1]) == [2, 4, 1]
    assert Shared(4).counts(GAINS, [4, 4, 1]) == [4, 4, 1]
    equal = [[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]
    assert Shared(2).counts(equal, [1, 2]) == [2, 1]  # of equal gains the first input's


def test_as_people_write_them() -> None:
    for budget in (Coverage(0.95), Shared(64), Shared(0.25)):
        assert parse_any_budget(str(budget)) == budget
    assert parse_any_budget("1/4") == 0.25
    for wrong in ("coverage:0", "coverage:1.5", "shared:0", "cover:0.9", "shared:coverage:1"):
        with pytest.raises(ValueError):
            parse_any_budget(wrong)
    with pytest.raises(TypeError, match="share is True"):
        Coverage(True)
