"""Scenes, pictures, labels and questions of collages."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.vlm.embedded.collage.folder import make_folder
from vlm.embedded.collage import (
    CATEGORIES,
    FIELDS,
    SPLITS,
    Pictures,
    Scene,
    draw,
    held_out_pair,
    make_scene,
    patch_labels,
    questions,
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    return Pictures(make_folder(tmp_path_factory.mktemp("collage")))


def holds_held_out_pair(scene: Scene) -> bool:
    names = {thing.name for thing in scene.things}
    return any(held_out_pair(a, b) for a in names for b in names if a < b)


def test_splits_share_no_background_font_pair_or_style(pictures: Pictures) -> None:
    seen = {}
    for split in SPLITS:
        scenes = [make_scene(seed, split, pictures) for seed in range(60)]
        seen[split] = {s.background for s in scenes}, {s.sign.font for s in scenes if s.sign}
        assert {holds_held_out_pair(s) for s in scenes} == {split != "train"}
        styles = {t.look.name.startswith("fluent") for s in scenes for t in s.things}
        assert styles == {split == "unseen"}
    for split in ("val", "test"):
        assert not seen["train"][0] & seen[split][0] and not seen["train"][1] & seen[split][1]
    assert not seen["val"][0] & seen["test"][0]


def test_a_seed_determines_a_scene(pictures: Pictures) -> None:
    assert make_scene(3, "val", pictures) == make_scene(3, "val", pictures)
    assert make_scene(3, "val", pictures) != make_scene(4, "val", pictures)
    with pytest.raises(ValueError, match="split must be one of"):
        make_scene(0, "tset", pictures)  # type: ignore[arg-type]


def test_counts_are_drawn_evenly_and_true(pictures: Pictures) -> None:
    counts: Counter[int] = Counter()
    for seed in range(400):
        scene = make_scene(seed, "train", pictures)
        counts[scene.counted] += 1
        names = [thing.name for thing in scene.things]
        assert names.count(names[0]) == scene.counted
        slots = [(thing.row, thing.column) for thing in scene.things]
        assert len(set(slots)) == len(slots)
    assert all(70 < counts[n] < 130 for n in range(1, 5))


def test_answers_hold_in_the_scene(pictures: Pictures) -> None:
    asked: Counter[str] = Counter()
    for seed in range(150):
        scene = make_scene(seed, "train", pictures)
        names = [thing.name for thing in scene.things]
        for question in questions(scene, np.random.default_rng(seed)):
            asked[question.category] += 1
            if question.category == "what":
                assert question.answer in names
            if question.category == "where":
                (thing,) = (t for t in scene.things if f"the {t.name}?" in question.text)
                assert question.answer == thing.place
            if question.category == "exist":
                there = any(f" {name}" in question.text for name in names)
                assert there or question.answer == "no"
            if question.category == "choice":
                lines = dict(line.split(". ", 1) for line in question.text.splitlines()[1:-1])
                right = lines[question.answer]
                assert right in names or right.endswith(" circle")
            if question.category == "read":
                assert scene.sign is not None and question.answer == scene.sign.word
    assert set(asked) == set(CATEGORIES)


def test_labels_lie_where_things_are_drawn(pictures: Pictures) -> None:
    for seed in range(40):
        scene = make_scene(seed, "train", pictures)
        picture = np.asarray(draw(scene))
        labels = patch_labels(scene, 16).reshape(16, 16, -1)
        assert picture.shape == (224, 224, 3)
        for thing in scene.things:
            row, column = int(thing.y // 14), int(thing.x // 14)
            shown = FIELDS["shows"][labels[row, column, 0]]
            assert shown == thing.name
            assert picture[int(thing.y), int(thing.x), 1] == 200  # the looks of these tests
        if scene.sign is not None:
            row = labels[int((scene.sign.box[1] + scene.sign.box[3]) / 2 // 14), :, 0]
            letters = [FIELDS["shows"][k] for k in row if len(FIELDS["shows"][k]) == 1]
            assert set(letters) <= set(scene.sign.word) and letters[0] == scene.sign.word[0]


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="python -m vlm prepare collage"):
        Pictures(tmp_path)
