"""Questions in plain English about collages, each with its one right answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vlm.embedded.collage.names import COLOURS, THINGS, plural, with_article
from vlm.embedded.collage.scene import Scene, Thing

CATEGORIES = ("what", "where", "color", "count", "exist", "relation", "read", "choice")
LETTERS = "ABCD"


@dataclass(frozen=True)
class Question:
    """One question with its one right answer; `category` is one of `CATEGORIES`."""

    category: str
    text: str
    answer: str


def questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Questions about a scene: one of each kind that it can answer, some kinds twice, shuffled."""
    makers = (_what, _what, _where, _color, _count, _exist, _exist, _relation, _read, _choice)
    found = [question for make in makers if (question := make(scene, rng)) is not None]
    unique = list({question.text: question for question in found}.values())
    return [unique[int(k)] for k in rng.permutation(len(unique))]


def _one(rng: np.random.Generator, options: list[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _single(scene: Scene) -> list[Thing]:
    """Things whose name occurs once."""
    names = [thing.name for thing in scene.things]
    return [thing for thing in scene.things if names.count(thing.name) == 1]


def _what(scene: Scene, rng: np.random.Generator) -> Question:
    thing = scene.things[int(rng.integers(len(scene.things)))]
    ways = [
        f"What is in the {thing.place}?",
        f"What can be seen in the {thing.place} of the picture?",
        f"Which thing is in the {thing.place}?",
    ]
    if thing.circle is not None:
        ways += [f"What is on the {thing.circle} circle?"] * 3
    return Question("what", _one(rng, ways), thing.name)


def _where(scene: Scene, rng: np.random.Generator) -> Question | None:
    if not (single := _single(scene)):
        return None
    thing = single[int(rng.integers(len(single)))]
    ways = [
        f"Where is the {thing.name}?",
        f"In which part of the picture is the {thing.name}?",
        f"Where in the picture can you see the {thing.name}?",
    ]
    return Question("where", _one(rng, ways), thing.place)


def _color(scene: Scene, rng: np.random.Generator) -> Question | None:
    ways: list[tuple[str, str]] = []
    if scene.sign is not None:
        asked = _one(rng, ["What color is the sign?", "Which color does the sign have?"])
        ways.append((asked, scene.sign.colour))
    for thing in _single(scene):
        if thing.circle is not None:
            asked = _one(rng, ["What color is", "Which color has"])
            ways.append((f"{asked} the circle behind the {thing.name}?", thing.circle))
    if not ways:
        return None
    text, answer = ways[int(rng.integers(len(ways)))]
    return Question("color", text, answer)


def _count(scene: Scene, rng: np.random.Generator) -> Question:
    name = plural(scene.things[0].name)
    ways = [
        f"How many {name} are there?",
        f"How many {name} are in the picture?",
        f"Count the {name}.",
    ]
    return Question("count", _one(rng, ways), str(scene.counted))


def _exist(scene: Scene, rng: np.random.Generator) -> Question:
    shown = {thing.name for thing in scene.things}
    there = bool(rng.integers(2))
    names = [name for name in THINGS if (name in shown) == there]
    name = with_article(names[int(rng.integers(len(names)))])
    verb = "Are" if name in ("grapes", "scissors") else "Is"
    ways = [
        f"{verb} there {name} in the picture?",
        f"Can you see {name}?",
        f"Does the picture show {name}?",
    ]
    return Question("exist", _one(rng, ways), "yes" if there else "no")


_SIDES: dict[str, Callable[[Thing], int]] = {
    "left of": lambda thing: -thing.column,
    "right of": lambda thing: thing.column,
    "above": lambda thing: -thing.row,
    "below": lambda thing: thing.row,
}


def _relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    single = _single(scene)
    facts = [
        (word, a, b)
        for a in single
        for b in single
        for word, along in _SIDES.items()
        if along(a) > along(b)
    ]
    if not facts:
        return None
    word, a, b = facts[int(rng.integers(len(facts)))]
    if rng.random() < 0.5:
        first, second = (a, b) if rng.random() < 0.5 else (b, a)
        most = {"left of": "further left", "right of": "further right"}
        most |= {"above": "higher", "below": "lower"}
        text = f"Which is {most[word]}, the {first.name} or the {second.name}?"
        return Question("relation", text, a.name)
    true = bool(rng.integers(2))
    first, second = (a, b) if true else (b, a)
    text = f"Is the {first.name} {word} the {second.name}?"
    return Question("relation", text, "yes" if true else "no")


def _read(scene: Scene, rng: np.random.Generator) -> Question | None:
    if scene.sign is None:
        return None
    ways = [
        "What does the sign say?",
        "Which word is on the sign?",
        "Read the sign.",
    ]
    return Question("read", _one(rng, ways), scene.sign.word)


def _choice(scene: Scene, rng: np.random.Generator) -> Question:
    shown = {thing.name for thing in scene.things}
    thing = scene.things[int(rng.integers(len(scene.things)))]
    if thing.circle is not None and rng.random() < 0.3:
        text, answer = f"What is behind the {thing.place} thing?", f"{thing.circle} circle"
        others = [f"{colour} circle" for colour in COLOURS if colour != thing.circle]
    else:
        text, answer = "Which of these is in the picture?", thing.name
        others = [name for name in THINGS if name not in shown]
        if rng.random() < 0.5:
            # The other things that are shown are among the options here.
            text = f"What is in the {thing.place}?"
            near = [name for name in shown if name != thing.name]
            near.sort()
            fill = [others[int(k)] for k in rng.permutation(len(others))[:3]]
            others = [*near, *fill][: max(3, len(near))]
    wrong = [others[int(k)] for k in rng.permutation(len(others))[: len(LETTERS) - 1]]
    options = [*wrong, answer]
    options = [options[int(k)] for k in rng.permutation(len(options))]
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True)]
    asked = "\n".join([text, *lines, "Answer with the letter."])
    return Question("choice", asked, LETTERS[options.index(answer)])
