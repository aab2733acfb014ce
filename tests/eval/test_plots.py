"""Pictures of a sweep."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from eval.arms import Arm
from eval.statistics import Interval
from eval.summary import Result

pytest.importorskip("matplotlib")


def result(line: str, tokens: float, mean: float) -> Result:
    """A result with what plots read of it."""
    given: dict[str, Any] = {field.name: None for field in fields(Result)}
    given |= {"line": line, "figures": {"tokens": tokens}, "by": {}}
    return Result(**given | {"accuracy": Interval(mean, mean - 0.1, mean + 0.1, 10, 5, "wilson")})


def test_two_arms_of_a_line_may_spend_the_same() -> None:
    from eval.plots import accuracy_curve

    line = Arm("duet", 0.5).line
    results = [result(line, 16.0, 0.5), result(line, 16.0, 0.7), result(line, 8.0, 0.4)]
    assert accuracy_curve(results, "a benchmark").startswith(b"\x89PNG")
