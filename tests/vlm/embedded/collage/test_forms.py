"""Captions, and options for multiple choice."""

from __future__ import annotations

import numpy as np
import pytest

from tests.vlm.embedded.collage.folder import make_folder
from vlm.embedded.collage import CATEGORIES, THINGS, Pictures, caption, make_scene, named, questions
from vlm.embedded.collage.forms import answer_of, options


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    return Pictures(make_folder(tmp_path_factory.mktemp("collage")))


def test_a_caption_names_what_is_there(pictures: Pictures) -> None:
    for seed in range(60):
        scene = make_scene(seed, "train", pictures)
        asked = caption(scene, np.random.default_rng(seed))
        assert named(asked.answer) == {thing.name for thing in scene.things}
        assert (scene.sign is not None) == ("sign that says" in asked.answer)


def test_names_in_a_text() -> None:
    assert named("Three Wolves, loaves of bread and an apple") == {"wolf", "bread", "apple"}
    assert named("a carrot, a sign that says PIZZA and sheepdogs") == {"carrot"}
    assert named(" ".join(THINGS)) == set(THINGS)


def test_options_hold_the_answer_and_what_is_shown(pictures: Pictures) -> None:
    seen = set()
    for seed in range(80):
        scene = make_scene(seed, "val", pictures)
        for number, question in enumerate(questions(scene, np.random.default_rng((seed, 0)))):
            text, listed = options(question, scene, np.random.default_rng((seed, number, 1)))
            answer = answer_of(question)
            assert listed.count(answer) == 1 and len(set(listed)) == len(listed)
            assert "\n" not in text and 2 <= len(listed) <= 4
            if question.category == "what":
                shown = {thing.name for thing in scene.things}
                assert len(shown & set(listed)) == min(4, len(shown))
            if question.category == "choice":
                assert all(f". {option}" in question.text for option in listed)
            seen.add(question.category)
    assert seen == set(CATEGORIES)
