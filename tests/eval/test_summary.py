"""Figures of a sweep: flips, and accuracy on questions that a down-sampled picture gets wrong."""

from __future__ import annotations

from typing import Any

import pytest

from eval.arms import DENSE, Arm
from eval.benchmarks.embedded import Embedded
from eval.samples import Sample
from eval.summary import summarise

RIGHT = {
    DENSE: [1, 1, 1, 1, 0, 0],
    Arm("downsample", 16): [1, 0, 0, 0, 0, 1],
    Arm("duet", 16): [1, 1, 0, 1, 1, 0],
    Arm("duet", 36): [1, 1, 1, 1, 1, 1],
}


def records() -> tuple[list[Sample], dict[Arm, dict[str, dict[str, Any]]]]:
    samples = [Sample(str(n), "?", answer="red", groups={"category": "a"}) for n in range(6)]
    said = {
        arm: {str(n): {"text": "red" if right else "blue"} for n, right in enumerate(values)}
        for arm, values in RIGHT.items()
    }
    return samples, said


def test_flips_count_changes_either_way() -> None:
    results = {r.title: r for r in summarise(Embedded(), *records())}
    assert results["dense"].flips is None
    assert results["duet 16"].flips == pytest.approx(2 / 6)
    assert results["duet 36"].flips == pytest.approx(2 / 6)
    assert results["downsample 16"].flips == pytest.approx(4 / 6)


def test_hard_questions_are_those_that_a_smaller_picture_loses() -> None:
    results = {r.title: r for r in summarise(Embedded(), *records())}
    hard = results["duet 16"].hard
    assert hard is not None and hard.count == 3 and hard.mean == pytest.approx(2 / 3)
    assert all(results[name].hard is None for name in ("dense", "downsample 16", "duet 36"))
