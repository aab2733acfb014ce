"""The embedded benchmark: what is asked, how it is judged, and its files."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from eval.benchmarks.embedded import Embedded, choices, template, write
from eval.samples import DataError, Sample
from vlm.scenes import CATEGORIES, draw, make_scene


def by_category(benchmark: Embedded) -> dict[str, Sample]:
    return {s.groups["category"]: s for s in benchmark.load().samples}


def test_every_category_is_asked_of_what_the_scene_shows() -> None:
    loaded = Embedded(scenes=12).load()
    assert {s.groups["category"] for s in loaded.samples} == set(CATEGORIES)
    assert not loaded.problems
    for sample in loaded.samples:
        scene = make_scene(int(sample.cluster), "test")
        shown = sample.media[0].load()
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(draw(scene)))
        if sample.groups["category"] == "reading":
            assert sample.answer == scene.sign.text
    assert len({s.key for s in loaded.samples}) == len(loaded.samples)


def test_the_same_questions_every_time_and_others_in_another_split() -> None:
    def asked(benchmark: Embedded) -> list[tuple[str, str]]:
        return [(s.prompt, s.answer) for s in benchmark.load().samples]

    assert asked(Embedded(scenes=5)) == asked(Embedded(scenes=9))[: len(asked(Embedded(scenes=5)))]
    assert asked(Embedded(scenes=5)) != asked(Embedded("val", scenes=5))


@pytest.mark.parametrize(
    ("category", "answer", "text", "right"),
    [
        ("colour", "red", " Red\n", True),
        ("colour", "red", "red.", False),
        ("colour", "red", "red red", False),
        ("colour", "red", "", False),
        ("place", "row 2 column 3", "row 2 column 3", True),
        ("place", "row 2 column 3", "row 2  column 3", False),
        ("reading", "K7", " K7 ", True),
        ("reading", "K7", "k7", False),  # what is read keeps its case
    ],
)
def test_exact_match(category: str, answer: str, text: str, right: bool) -> None:
    sample = Sample("k", "?", answer=answer, groups={"category": category})
    assert Embedded().score(sample, text).value == float(right)


def test_chance_is_the_best_constant_for_each_template() -> None:
    rows = [
        ("What colour is the star?", "red"),
        ("What colour is the circle?", "red"),
        ("What colour is the heart?", "blue"),
        ("How many crosses are there?", "2"),
        ("How many hearts are there?", "1"),
    ]
    samples = [Sample(str(i), prompt, answer=answer) for i, (prompt, answer) in enumerate(rows)]
    assert Embedded().chance(samples) == 3 / 5
    assert template("What shape is the red object?") == "What shape is the _ object?"
    assert template("How many crosses are there?") == template("How many rings are there?")


def test_files_say_what_the_drawing_says(tmp_path: Path) -> None:
    write(tmp_path, "test", 6)
    drawn, read = Embedded(scenes=6).load(), Embedded(data=tmp_path / "open.jsonl").load()
    assert not read.problems
    for a, b in zip(drawn.samples, read.samples, strict=True):
        assert (a.key, a.prompt, a.answer, a.groups) == (b.key, b.prompt, b.answer, b.groups)
        np.testing.assert_array_equal(np.asarray(a.media[0].load()), np.asarray(b.media[0].load()))


def test_the_choices_are_four_and_hold_the_answer_once(tmp_path: Path) -> None:
    write(tmp_path, "test", 20)
    samples = Embedded(scenes=20).load().samples
    with (tmp_path / "mmbench.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    letters = []
    for sample, row in zip(samples, rows, strict=True):
        options = [row[letter] for letter in "ABCD"]
        assert len(set(options)) == 4
        assert row[row["answer"]] == sample.answer
        letters.append(row["answer"])
        holder = rows[int(row["image"])] if len(row["image"]) <= 64 else row
        assert len(holder["image"]) > 64
    assert min(letters.count(letter) for letter in "ABCD") > len(rows) / 8


def test_wrong_options_are_things_that_the_picture_shows() -> None:
    from vlm.scenes import questions

    scene = make_scene(3, "test")
    for question in questions(scene, np.random.default_rng(0)):
        if question.category == "place":
            options = choices(scene, question, np.random.default_rng(0))
            shown = {f"row {i.row} column {i.column}" for i in scene.items}
            assert len(set(options) & shown) == min(4, len(shown))


def test_broken_lines_are_reported_by_number(tmp_path: Path) -> None:
    write(tmp_path, "test", 2)
    path = tmp_path / "open.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = "{"
    lines[2] = lines[2].replace("images/00000.png", "../secret.png")
    lines[3] = lines[3].replace('"answer"', '"response"')
    lines.append(lines[0])
    path.write_text("\n".join(lines))
    loaded = Embedded(data=path).load()
    assert [p.row for p in loaded.problems] == ["line 2", "line 3", "line 4", "00000-colour"]
    assert "no text under answer" in loaded.problems[2].what
    assert "2 rows" in loaded.problems[3].what
    assert len(loaded.samples) == len(lines) - 5


@pytest.mark.parametrize(
    "benchmark",
    [Embedded("tset"), Embedded(scenes=0), Embedded(data=Path("absent.jsonl"))],  # type: ignore[arg-type]
)
def test_nonsense_is_refused(benchmark: Embedded) -> None:
    with pytest.raises(DataError):
        benchmark.load()
