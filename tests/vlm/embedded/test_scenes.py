"""Scenes and clips: deterministic, with disjoint splits, true answers and right labels."""

from __future__ import annotations

import re

import numpy as np
import pytest

from vlm.embedded.scenes import (
    CATEGORIES,
    CHARACTERS,
    COLOURS,
    FIELDS,
    FRAMES,
    SHAPES,
    SPLITS,
    Clip,
    Item,
    Question,
    Scene,
    cell_labels,
    clip_labels,
    clip_questions,
    draw,
    draw_clip,
    held_out_pair,
    held_out_text,
    make_clip,
    make_scene,
    multiple_choice,
    options,
    questions,
)
from vlm.embedded.scenes.scene import FONTS, PHOTOS


def items_of(clip: Clip) -> list[Item]:
    return [item for frame in clip.frames for item in frame.items]


def called(items: list[Item] | tuple[Item, ...], name: str) -> list[Item]:
    """The items that "the star" or "the red object" can mean."""
    word = name.split()[0]
    return [item for item in items if word in (item.shape, item.colour)]


def test_a_seed_makes_one_scene_and_one_picture() -> None:
    first, again, other = make_scene(3, "val"), make_scene(3, "val"), make_scene(4, "val")
    assert first == again != other
    assert np.array_equal(np.asarray(draw(first)), np.asarray(draw(again)))
    assert make_clip(3) == make_clip(3) != make_clip(4)
    frames = draw_clip(make_clip(3))
    assert len(frames) == FRAMES and not np.array_equal(*map(np.asarray, frames[:2]))
    with pytest.raises(ValueError, match="split"):
        make_scene(0, "dev")  # type: ignore[arg-type]


def test_what_is_held_out_never_comes_in_training() -> None:
    assert sum(held_out_pair(s, c) for s in SHAPES for c in COLOURS) == 8
    for seed in range(200):
        scene = make_scene(seed, "train")
        shown = [*scene.items, *items_of(make_clip(seed, "train"))]
        assert not any(held_out_pair(i.shape, i.colour) for i in shown)
        assert scene.sign is not None and not held_out_text(scene.sign.text)
        for split in SPLITS[1:]:
            scene = make_scene(seed, split)
            assert any(held_out_pair(i.shape, i.colour) for i in scene.items)
            assert any(held_out_pair(i.shape, i.colour) for i in items_of(make_clip(seed, split)))
            assert scene.sign is not None and held_out_text(scene.sign.text)
            assert scene.photo in PHOTOS[split]
    for names in (PHOTOS, FONTS):
        all_names = [name for split in SPLITS for name in names[split]]
        assert len(all_names) == len(set(all_names))


def right_answer(scene: Scene, question: Question) -> str:
    """Worked out anew from the text of the question."""
    text = question.text.rstrip("?")
    rest = text.split(" the ", 1)[-1]
    if question.category == "reading":
        return scene.sign.text  # type: ignore[union-attr]
    if question.category == "small":
        dot = scene.dot
        assert dot is not None
        return dot.colour if "colour" in text else f"row {dot.row} column {dot.column}"
    if question.category == "count":
        name = text.split()[2]
        return str(sum(name.startswith(i.shape) or name == i.colour for i in scene.items))
    if question.category == "relation":
        word, names = text.removeprefix("Which is ").split(", the ")
        both = {name: called(scene.items, name) for name in names.split(" or the ")}
        side = {"left": "column", "right": "column", "above": "row", "below": "row"}[word]
        ranked = sorted(both, key=lambda name: getattr(both[name][0], side))
        assert [len(items) for items in both.values()] == [1, 1]
        assert len({getattr(items[0], side) for items in both.values()}) == 2
        return ranked[0] if word in ("left", "above") else ranked[-1]
    (item,) = called(scene.items, rest)
    if question.category == "place":
        return f"row {item.row} column {item.column}"
    return item.colour if "colour is" in text else item.shape


def test_only_training_signs_vary_in_size_and_weight() -> None:
    signs = {
        split: {(s.size, s.stroke) for k in range(60) if (s := make_scene(k, split).sign)}
        for split in SPLITS
    }
    assert len(signs["train"]) > 20
    assert len({stroke for _, stroke in signs["train"]}) > 10
    assert len(signs["val"]) == 1 and signs["val"] == signs["test"]


def test_answers_are_true() -> None:
    seen = set()
    for seed in range(80):
        scene = make_scene(seed, "test")
        for question in questions(scene, np.random.default_rng(seed)):
            seen.add(question.category)
            assert question.answer == right_answer(scene, question), question
    assert seen == set(CATEGORIES) - {"order"}


def test_answers_about_time_are_true() -> None:
    for seed in range(80):
        clip = make_clip(seed, "test")
        order = {i.shape: k for k, frame in enumerate(clip.frames) for i in frame.items}
        first, last = clip_questions(clip, np.random.default_rng(seed))
        for question, pick in ((first, min), (last, max)):
            names = [word for word in re.findall(r"[a-z]+", question.text) if word in SHAPES]
            assert len({order[name] for name in names}) == 3
            assert question.answer == pick(names, key=order.__getitem__)
        assert " first," in first.text and " last," in last.text


def test_labels_lie_where_the_pixels_are() -> None:
    scene = make_scene(0)
    labels = dict(zip(FIELDS, cell_labels(scene), strict=True))
    pixels = np.asarray(draw(scene)).astype(int).reshape(12, 8, 12, 8, 3).mean((1, 3))
    for item in scene.items:
        matches = (labels["colour"] == list(COLOURS).index(item.colour) + 1) & (
            labels["shape"] == SHAPES.index(item.shape) + 1
        )
        assert matches.any() and item.row in labels["row"][matches]
        if item.shape != "ring":
            cell = pixels[int(item.y // 8), int(item.x // 8)]
            assert np.abs(cell - COLOURS[item.colour]).max() < 110
    assert scene.sign is not None and scene.dot is not None
    characters = labels["character"][labels["character"] > 0]
    assert "".join(CHARACTERS[k - 1] for k in characters) == scene.sign.text
    (dot,) = np.flatnonzero(labels["kind"] == 3)
    assert (dot // 12, dot % 12) == (scene.dot.y // 8, scene.dot.x // 8)
    clip = make_clip(0)
    frame_labels = clip_labels(clip)
    assert frame_labels.shape == (len(FIELDS), FRAMES * 144)
    assert np.array_equal(frame_labels[:, 144:288], cell_labels(clip.frames[1]))


def test_a_choice_has_the_answer_once_and_things_that_are_shown() -> None:
    letters = []
    for seed in range(60):
        scene, clip = make_scene(seed, "test"), make_clip(seed, "test")
        rng = np.random.default_rng(seed)
        asked = [(q, list(scene.items)) for q in questions(scene, rng)]
        asked += [(q, items_of(clip)) for q in clip_questions(clip, rng)]
        for question, shown in asked:
            choices = options(question, shown, rng)
            assert choices.count(question.answer) == 1 and len(set(choices)) == len(choices)
            assert len(choices) == {"relation": 2, "order": 3}.get(question.category, 4)
            if question.category == "place":
                places = {f"row {i.row} column {i.column}" for i in shown}
                assert len(set(choices) & places) == min(4, len(places))
            form = multiple_choice(question, choices)
            assert f"{form.answer}. {question.answer}" in form.text.splitlines()
            letters.append(form.answer)
    assert all(letters.count(letter) > len(letters) / 8 for letter in "ABCD")


def test_a_photograph_without_its_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sys

    from vlm.embedded.scenes import drawing

    drawing._photo.cache_clear()
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ImportError, match=r"foveate\[demo\]"):
        draw(make_scene(0, "test"))
