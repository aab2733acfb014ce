"""Which combinations of parameters the quick suite runs; the slow suite runs the rest."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tiny import CASES

each_case = pytest.mark.parametrize(
    "case",
    [case if case.quick else pytest.param(case, marks=pytest.mark.slow) for case in CASES],
    ids=lambda case: case.name,
)

# One axis, three axes, blocks of several experts; windows and two-way blocks, a state.
QUICK = ("llava", "qwen2_5_vl", "foveate", "gemma3", "qwen3_5")


def later(*values: Any) -> list[Any]:
    """Values of one parameter that the slow suite runs alone."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


_SOME = [case if case.name in QUICK else later(case)[0] for case in CASES]
some_cases = pytest.mark.parametrize("case", _SOME, ids=lambda case: case.name)
# A state that is carried from token to token cannot be cropped: the stock model refuses to.
some_croppable_cases = pytest.mark.parametrize(
    "case",
    [one for one, case in zip(_SOME, CASES, strict=True) if not case.recurrent],
    ids=lambda case: case.name,
)
