"""TextVQA: prompts, scores, the submission file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.benchmarks import TextVQA
from eval.samples import Scored
from tests.eval import fixtures
from tests.eval.fixtures import SHORT, scored


def test_textvqa(tmp_path: Path) -> None:
    data, media, ocr = fixtures.textvqa(tmp_path)
    answers = scored(TextVQA(data, media), {"34602": "k7.", "34603": "K 7", "34604": "Nokia"})
    # "K 7" was given by 2, "nokia" by 1: whoever is left out, at most so many others agree.
    expected = [1.0, (8 * 2 / 3 + 2 * 1 / 3) / 10, 9 * (1 / 3) / 10]
    assert [s.score.value for s in answers] == pytest.approx(expected)
    assert answers[0].score.read == "k7"
    assert answers[0].sample.prompt == "What does the sign say?" + SHORT
    (with_tokens, *_) = TextVQA(data, media, ocr).load().samples
    assert with_tokens.prompt == "What does the sign say?\nReference OCR token: K7, EXIT" + SHORT


def test_textvqa_without_answers_is_handed_in(tmp_path: Path) -> None:
    data, media, _ = fixtures.textvqa(tmp_path, answers=False)
    benchmark = TextVQA(data, media)
    answers = [Scored(s, "The K7", benchmark.score(s, "The K7")) for s in benchmark.load().samples]
    assert [s.score.value for s in answers] == [None] * 3
    (path,) = benchmark.export(answers, tmp_path)
    assert json.loads(path.read_text())[0] == {"question_id": 34602, "answer": "k7"}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"image_id": "absent"}, "no file absent.jpg"),
        ({"answers": ["one"]}, "expected a list, of ten people"),
    ],
)
def test_faults_are_told_by_row(tmp_path: Path, change: dict[str, object], what: str) -> None:
    data, media, _ = fixtures.textvqa(tmp_path)
    fixtures.change_first(data, change)
    problem = fixtures.only_problem(TextVQA(data, media))
    assert problem.startswith("row 1 (34602): ") and what in problem
