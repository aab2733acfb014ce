"""Questions about collages as a benchmark."""

from __future__ import annotations

from dataclasses import replace
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


def test_turns_are_the_same_questions_after_another(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    alone = {s.key: s for s in Collage("val", 4, pictures=folder).load().samples}
    turns = Collage("val", 4, pictures=folder, kind="turns").load().samples
    assert len(turns) == len(alone) - 4
    for sample in turns:
        assert replace(sample, earlier=(), media=()) == replace(alone[sample.key], media=())
        head, _, number = sample.key.rpartition("-")
        assert sample.earlier == (alone[f"{head}-{int(number) - 1}"].prompt,)


def test_captions_are_scored_by_the_names_in_them(tmp_path: Path) -> None:
    benchmark = Collage("val", 9, pictures=make_folder(tmp_path), kind="captions")
    samples = benchmark.load().samples
    assert len(samples) == 9 and benchmark.chance(samples) is None
    sample = replace(samples[0], answer="Two wolves, a car and a red sign that says PIZZA.")
    assert benchmark.score(sample, "A CAR and a wolf").value == 1
    assert benchmark.score(sample, "a carrot, a wolf").value == pytest.approx(0.5)
    assert benchmark.score(sample, "").value == 0


def test_the_usual_kind_changes_no_folder(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    assert "kind" not in Collage(pictures=folder).describe()
    assert Collage(pictures=folder, kind="turns").describe()["kind"] == "turns"


def test_what_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="prepare collage"):
        Collage(pictures=tmp_path).load()
    with pytest.raises(DataError, match="split is 'tset'"):
        Collage("tset").load()  # type: ignore[arg-type]
    with pytest.raises(DataError, match="kind is 'caption'; expected one of questions, turns"):
        Collage(kind="caption").load()  # type: ignore[arg-type]
    with pytest.raises(DataError, match="scenes is 0"):
        Collage(scenes=0).load()
