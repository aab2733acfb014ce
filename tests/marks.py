"""Which combinations of parameters the quick suite runs; the slow suite runs the rest."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tiny import CASES

QUICK = ("llava", "qwen2_5_vl", "foveate")  # one axis, three axes, blocks of several experts


def later(*values: Any) -> list[Any]:
    """Values of one parameter that the slow suite runs alone."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


some_cases = pytest.mark.parametrize(
    "case",
    [case if case.name in QUICK else later(case)[0] for case in CASES],
    ids=lambda case: case.name,
)
