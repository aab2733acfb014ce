"""The embedded benchmark: what is asked, how it is judged, and its files."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from eval.benchmarks.embedded import Embedded, template, write
from eval.samples import DataError, Drawing, Picture, Sample
from vlm.embedded.scenes import CATEGORIES, FRAMES, draw, draw_clip, make_clip, make_scene
from vlm.media import Video


def shown(sample: Sample) -> np.ndarray:
    return pixels(sample.media[0])


@cache
def pixels(medium: Drawing | Picture) -> np.ndarray:
    loaded = medium.load()
    return loaded.frames if isinstance(loaded, Video) else np.asarray(loaded)


@cache
def drawn(cluster: str) -> np.ndarray:
    seed = int(cluster[1:])
    if cluster.startswith("s"):
        return np.asarray(draw(make_scene(seed, "test")))
    return np.stack([np.asarray(frame) for frame in draw_clip(make_clip(seed, "test"))])


def test_every_category_is_asked_of_what_the_scene_shows() -> None:
    loaded = Embedded(scenes=12, clips=4).load()
    assert {s.groups["category"] for s in loaded.samples} == set(CATEGORIES)
    assert not loaded.problems
    for sample in loaded.samples:
        np.testing.assert_array_equal(shown(sample), drawn(sample.cluster))
        if sample.groups["category"] == "reading":
            scene = make_scene(int(sample.cluster[1:]), "test")
            assert scene.sign is not None and sample.answer == scene.sign.text
    assert len({s.key for s in loaded.samples}) == len(loaded.samples)


def test_the_same_questions_every_time_and_others_in_another_split() -> None:
    def asked(benchmark: Embedded) -> list[tuple[str, str]]:
        return [(s.prompt, s.answer) for s in benchmark.load().samples]

    few, more = asked(Embedded(scenes=5, clips=0)), asked(Embedded(scenes=9, clips=0))
    assert few == more[: len(few)]
    assert few != asked(Embedded("val", scenes=5, clips=0))


def test_blind_questions_are_the_same_and_show_nothing() -> None:
    seen, blind = (Embedded(scenes=3, clips=2, blind=b).load().samples for b in (False, True))
    assert [(s.key, s.prompt, s.answer) for s in seen] == [
        (s.key, s.prompt, s.answer) for s in blind
    ]
    assert not any(s.media for s in blind) and all(s.media for s in seen)


def test_choices_are_answered_with_a_letter() -> None:
    plain, choices = (Embedded(scenes=6, clips=3, choices=c).load().samples for c in (False, True))
    for sample, form in zip(plain, choices, strict=True):
        assert form.prompt.startswith(sample.prompt) and form.answer in "ABCD"
        assert f"{form.answer}. {sample.answer}" in form.prompt.splitlines()


@pytest.mark.parametrize(
    ("category", "answer", "text", "right"),
    [
        ("attribute", "red", " Red\n", True),
        ("attribute", "red", "red.", False),
        ("attribute", "red", "red red", False),
        ("attribute", "red", "", False),
        ("place", "row 2 column 3", "row 2 column 3", True),
        ("place", "row 2 column 3", "row 2  column 3", False),
        ("reading", "K7", " K7 ", True),
        ("reading", "K7", "k7", False),  # what is read keeps its case
    ],
)
def test_exact_match(category: str, answer: str, text: str, right: bool) -> None:
    sample = Sample("k", "?", answer=answer, groups={"category": category})
    assert Embedded().score(sample, text).value == float(right)


def test_a_letter_is_read_as_it_is_asked_for() -> None:
    sample = Sample("k", "?", answer="B", groups={"category": "place"})
    assert Embedded(choices=True).score(sample, " B").value == 1.0
    assert Embedded(choices=True).score(sample, "C").value == 0.0


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
    write(tmp_path, "test", 4, 2)
    made = Embedded(scenes=4, clips=2).load()
    read = Embedded(data=tmp_path / "open.jsonl").load()
    assert not read.problems
    for a, b in zip(made.samples, read.samples, strict=True):
        assert (a.key, a.prompt, a.answer, a.groups) == (b.key, b.prompt, b.answer, b.groups)
        np.testing.assert_array_equal(shown(a), shown(b))


def test_the_choices_hold_the_answer_once(tmp_path: Path) -> None:
    write(tmp_path, "test", 20, 1)
    samples = Embedded(scenes=20, clips=0).load().samples
    with (tmp_path / "mmbench.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    letters = []
    for sample, row in zip(samples, rows, strict=True):
        options = [row[letter] for letter in "ABCD" if row[letter]]
        assert len(set(options)) == (2 if row["category"] == "relation" else 4)
        assert row[row["answer"]] == sample.answer
        letters.append(row["answer"])
        holder = rows[int(row["image"])] if len(row["image"]) <= 64 else row
        assert len(holder["image"]) > 64
    assert min(letters.count(letter) for letter in "ABCD") > len(rows) / 8


def test_broken_lines_are_reported_by_number(tmp_path: Path) -> None:
    write(tmp_path, "test", 2, 0)
    path = tmp_path / "open.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = "{"
    lines[2] = lines[2].replace("images/s00000-0.png", "../secret.png")
    lines[3] = lines[3].replace('"answer"', '"response"')
    lines[4] = lines[4].replace('["images/s00000-0.png"]', '"images/s00000-0.png"')
    lines.append(lines[0])
    path.write_text("\n".join(lines))
    loaded = Embedded(data=path).load()
    named = ["line 2", "line 3", "line 4", "line 5", "s00000-0-attribute"]
    assert [p.row for p in loaded.problems] == named
    assert "no text under answer" in loaded.problems[2].what
    assert f"a list of 1 or {FRAMES}" in loaded.problems[3].what
    assert "2 rows" in loaded.problems[4].what
    assert len(loaded.samples) == len(lines) - 6


@pytest.mark.parametrize(
    "benchmark",
    [
        Embedded("tset"),  # type: ignore[arg-type]
        Embedded(scenes=0, clips=0),
        Embedded(clips=-1),
        Embedded(data=Path("absent.jsonl")),
    ],
)
def test_nonsense_is_refused(benchmark: Embedded) -> None:
    with pytest.raises(DataError):
        benchmark.load()
