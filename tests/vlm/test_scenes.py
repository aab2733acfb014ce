"""Scenes: deterministic, splits apart, answers true, labels where the things are."""

from __future__ import annotations

import numpy as np
import pytest

from vlm.scenes import (
    CATEGORIES,
    CHARACTERS,
    COLOURS,
    SHAPES,
    SPLITS,
    cell_labels,
    draw,
    held_out_pair,
    held_out_text,
    make_scene,
    questions,
)


def test_a_seed_makes_one_scene_and_one_picture() -> None:
    first, again, other = make_scene(3, "val"), make_scene(3, "val"), make_scene(4, "val")
    assert first == again != other
    assert np.array_equal(np.asarray(draw(first)), np.asarray(draw(again)))
    with pytest.raises(ValueError, match="split"):
        make_scene(0, "dev")  # type: ignore[arg-type]


def test_what_is_held_out_never_comes_in_training() -> None:
    assert sum(held_out_pair(s, c) for s in SHAPES for c in COLOURS) == 8
    for seed in range(200):
        scene = make_scene(seed, "train")
        assert not any(held_out_pair(i.shape, i.colour) for i in scene.items)
        assert not held_out_text(scene.sign.text)
        for split in SPLITS[1:]:
            scene = make_scene(seed, split)
            assert any(held_out_pair(i.shape, i.colour) for i in scene.items)
            assert held_out_text(scene.sign.text)


def test_answers_are_true() -> None:
    seen = set()
    for seed in range(60):
        scene = make_scene(seed, "test")
        for question in questions(scene, np.random.default_rng(seed)):
            seen.add(question.category)
            words = question.text.rstrip("?").split()
            if question.category == "colour":
                right = [i.colour for i in scene.items if i.shape == words[-1]]
                assert right == [question.answer]
            elif question.category == "shape":
                right = [i.shape for i in scene.items if i.colour == words[-2]]
                assert right == [question.answer]
            elif question.category == "place":
                found = [i for i in scene.items if {i.shape, i.colour} & set(words)]
                assert [f"row {i.row} column {i.column}" for i in found] == [question.answer]
            elif question.category == "count":
                name = words[2]
                named = [i for i in scene.items if name.startswith(i.shape) or name == i.colour]
                assert str(len(named)) == question.answer
            else:
                assert question.answer == scene.sign.text
    assert seen == set(CATEGORIES)


def test_labels_lie_where_the_pixels_are() -> None:
    scene = make_scene(0)
    labels = cell_labels(scene)
    pixels = np.asarray(draw(scene)).astype(int).reshape(12, 8, 12, 8, 3).mean((1, 3))
    for item in scene.items:
        mine = (labels.colour == list(COLOURS).index(item.colour) + 1) & (
            labels.shape == SHAPES.index(item.shape) + 1
        )
        assert mine.any() and set(labels.row[mine]) <= {i.row for i in scene.items}
        if item.shape != "ring":
            cell = pixels[int(item.y // 8), int(item.x // 8)]
            assert np.abs(cell - COLOURS[item.colour]).max() < 110
    characters = [CHARACTERS[k - 1] for k in labels.character[labels.character > 0]]
    order = np.argsort(labels.place[labels.character > 0])
    assert "".join(np.array(characters)[order]) == scene.sign.text
