"""MME: prompts, scores, and what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.benchmarks import MME
from eval.samples import DataError, Scored
from tests.eval import fixtures
from tests.eval.fixtures import SHORT, scored


def test_mme(tmp_path: Path) -> None:
    benchmark = MME(fixtures.mme(tmp_path))
    wrong = {"count/0001/1": "Yes", "OCR/0001/0": "No", "OCR/0001/1": "yes", "OCR/0002/0": "what"}
    answers = scored(benchmark, wrong)
    assert len(answers) == 14 * 2 * 2
    figures = benchmark.extra(answers)
    # count: 3 of 4 right, 1 of 2 pictures; OCR: 1 of 4, no picture; every other task 200.
    assert figures["count"] == 75 + 50
    assert figures["OCR"] == 25 + 0
    assert figures["perception"] == 8 * 200 + 125 + 25
    assert figures["cognition"] == 4 * 200
    assert answers[0].sample.prompt == "Is there a star?" + SHORT
    assert len({s.sample.cluster for s in answers}) == 28


def test_mme_tells_what_is_missing(tmp_path: Path) -> None:
    root = fixtures.mme(tmp_path)
    (root / "count" / "0001.png").unlink()
    (root / "color" / "0002.txt").write_text("Is it red?\tYes\n")
    (root / "position" / "0002.txt").write_text("Is it left?\tYes\nIs it right? No\n")
    (root / "existence").rename(root / "exists")
    loaded = MME(root).load()
    assert {(p.row, p.what.split(":")[0]) for p in loaded.problems} == {
        ("existence", "no such folder"),
        ("count/0001.txt", "no picture 0001 with one of .jpg, .png, .jpeg, .webp"),
        ("color/0002.txt", "1 lines"),
        ("position/0002.txt", "line 2"),
    }
    benchmark = MME(root)
    answers = [Scored(s, s.answer, benchmark.score(s, s.answer)) for s in loaded.samples]
    assert "perception" not in benchmark.extra(answers)
    with pytest.raises(DataError, match="contains none of the folders existence, count"):
        MME(tmp_path / "count").load()
