"""Questions about collages as a benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.benchmarks import Collage
from eval.samples import DataError
from tests.vlm.embedded.collage.folder import make_folder
from vlm.embedded.collage import CATEGORIES


def test_questions_scores_and_chance(tmp_path: Path) -> None:
    benchmark = Collage("test", scenes=30, pictures=make_folder(tmp_path))
    samples = benchmark.load().samples
    assert {sample.groups["category"] for sample in samples} == set(CATEGORIES)
    assert len({sample.key for sample in samples}) == len(samples) > 200
    assert samples[0].media[0].load().size == (224, 224)
    word = next(sample for sample in samples if sample.groups["category"] == "read")
    assert benchmark.score(word, f" {word.answer.lower()}.\n").value == 1
    assert benchmark.score(word, f"{word.answer} x").value == 0
    exist = [s for s in samples if s.groups["category"] == "exist"]
    assert 0.4 < benchmark.chance(exist) < 0.8 and benchmark.chance(samples) < 0.5


def test_what_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="prepare collage"):
        Collage(pictures=tmp_path).load()
    with pytest.raises(DataError, match="split is 'tset'"):
        Collage("tset").load()  # type: ignore[arg-type]
    with pytest.raises(DataError, match="scenes is 0"):
        Collage(scenes=0).load()
