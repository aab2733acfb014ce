"""GQA: prompts and scores."""

from __future__ import annotations

from pathlib import Path

from eval.benchmarks import GQA
from tests.eval import fixtures
from tests.eval.fixtures import scored


def test_gqa(tmp_path: Path) -> None:
    data, media = fixtures.gqa(tmp_path)
    answers = scored(GQA(data, media), {"20100": "Yes.", "20101": "Left", "20102": "shirt"})
    assert [s.score.value for s in answers] == [1.0, 1.0, 0.0]
    assert answers[0].sample.groups == {"structural": "verify", "semantic": "rel"}
    assert GQA(data, media).score(answers[2].sample, "tshirt").value == 1.0


def test_faults_are_told_by_row(tmp_path: Path) -> None:
    data, media = fixtures.gqa(tmp_path)
    fixtures.change_first(data, {"imageId": "absent"})
    problem = fixtures.only_problem(GQA(data, media))
    assert problem.startswith("question 20100: no file absent.jpg")
