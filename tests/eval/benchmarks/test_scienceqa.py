"""ScienceQA: prompts and scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.benchmarks import ScienceQA
from eval.samples import DataError
from tests.eval import fixtures
from tests.eval.fixtures import scored


def test_scienceqa(tmp_path: Path) -> None:
    data, media = fixtures.scienceqa(tmp_path)
    answers = scored(ScienceQA(data, media), {"4": "The answer is B.", "5": "no"})
    assert [(s.sample.key, s.score.value) for s in answers] == [("4", 1.0), ("5", 0.0)]
    assert answers[0].sample.prompt == (
        "Context: It is round.\nWhich one is it?\nA. circle\nB. ring\nC. star\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert answers[1].sample.groups == {"subject": "social science", "grade": "grade 4"}
    with pytest.raises(DataError, match=r"no 'val' in .*; found test, train"):
        ScienceQA(data, media, split="val").load()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"answer": 3}, "answer is 3: expected 0 to 2"),
        ({"choices": ["one"]}, "1 choices: expected 2 to 8"),
    ],
)
def test_faults_are_told_by_row(tmp_path: Path, change: dict[str, object], what: str) -> None:
    data, media = fixtures.scienceqa(tmp_path)
    fixtures.change_first(data, change)
    assert fixtures.only_problem(ScienceQA(data, media)) == f"question 4: {what}"
