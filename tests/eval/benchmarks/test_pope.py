"""POPE: prompts, scores, further figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.benchmarks import POPE
from tests.eval import fixtures
from tests.eval.fixtures import SHORT, scored


def test_pope(tmp_path: Path) -> None:
    data, media = fixtures.pope(tmp_path)
    benchmark = POPE(data, media)
    # Of 12: 3 right "yes", 3 wrong "yes", 5 right "no", 1 unread in place of a "yes".
    texts = {"random-1": "maybe", "random-2": "No", "popular-2": "No.", "popular-3": "No"}
    answers = scored(benchmark, texts, default="Yes")
    assert len(answers) == 12
    yes = [s for s in answers if s.score.read == "yes"]
    hits = sum(s.sample.answer == "yes" for s in yes)
    figures = benchmark.extra(answers)
    assert (len(yes), hits) == (8, 4)
    assert figures == {
        "precision": 4 / 8,
        "recall": 4 / 6,
        "F1": pytest.approx(2 * 0.5 * (4 / 6) / (0.5 + 4 / 6)),
        "yes ratio": 8 / 12,
    }
    assert {s.sample.groups["kind"] for s in answers} == {"random", "popular", "adversarial"}
    assert answers[0].sample.prompt == "Is there a ring in the image?" + SHORT
    random_only = POPE(data / "coco_pope_random.json", media).load()
    assert [s.key for s in random_only.samples] == [f"random-{n}" for n in (1, 2, 3, 4)]


def test_faults_are_told_by_row(tmp_path: Path) -> None:
    data, media = fixtures.pope(tmp_path)
    fixtures.change_first(data / "coco_pope_random.json", {"label": "maybe"})
    wanted = "coco_pope_random.json, row 1: label is 'maybe': expected yes or no"
    assert fixtures.only_problem(POPE(data, media)) == wanted
