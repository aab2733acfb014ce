"""Questions about scenes and clips, each with its one right answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vlm.embedded.scenes.scene import CHARACTERS, COLOURS, FRAMES, SHAPES, SLOTS, Clip, Item, Scene

CATEGORIES = ("attribute", "place", "relation", "count", "small", "reading", "order")
LETTERS = "ABCD"
# Word -> the coordinate that is larger for the item which it describes.
_MOST: dict[str, Callable[[Item], int]] = {
    "left": lambda item: -item.column,
    "right": lambda item: item.column,
    "above": lambda item: -item.row,
    "below": lambda item: item.row,
}


@dataclass(frozen=True)
class Question:
    """One question with its one right answer; `category` is one of `CATEGORIES`."""

    category: str
    text: str
    answer: str


def questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """All kinds of questions that the scene can answer, one of each kind, in a fixed order."""
    makers = (_attribute, _place, _relation, _count, _small, _reading)
    return [question for make in makers if (question := make(scene, rng)) is not None]


def clip_questions(clip: Clip, rng: np.random.Generator) -> list[Question]:
    """Which of three things is seen first, and which of three last."""
    asked = []
    for word in ("first", "last"):
        frames = rng.choice(FRAMES, 3, replace=False).tolist()
        shapes = [_pick(rng, clip.frames[k].items).shape for k in frames]
        answer = shapes[frames.index(min(frames) if word == "first" else max(frames))]
        a, b, c = shapes
        text = f"Which is seen {word}, the {a}, the {b} or the {c}?"
        asked.append(Question("order", text, answer))
    return asked


def _attribute(scene: Scene, rng: np.random.Generator) -> Question | None:
    by_shape, by_colour = _unique(scene.items, "shape"), _unique(scene.items, "colour")
    if by_shape and (not by_colour or rng.random() < 0.5):
        item = _pick(rng, by_shape)
        return Question("attribute", f"What colour is the {item.shape}?", item.colour)
    if not by_colour:
        return None
    item = _pick(rng, by_colour)
    return Question("attribute", f"What shape is the {item.colour} object?", item.shape)


def _place(scene: Scene, rng: np.random.Generator) -> Question | None:
    if not _names(scene.items):
        return None
    name, item = _named(scene.items, rng)
    return Question("place", f"Where is {name}?", f"row {item.row} column {item.column}")


def _relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    names = _names(scene.items)
    relations = [
        (word, subject, other)
        for subject, item in names
        for other, beside in names
        for word, most in _MOST.items()
        if most(item) > most(beside)
    ]
    if not relations:
        return None
    word, subject, other = relations[int(rng.integers(len(relations)))]
    a, b = (subject, other) if rng.random() < 0.5 else (other, subject)
    return Question("relation", f"Which is {word}, {a} or {b}?", subject.removeprefix("the "))


def _count(scene: Scene, rng: np.random.Generator) -> Question:
    shapes = [item.shape for item in scene.items]
    colours = [item.colour for item in scene.items]
    counts = [(shapes.count(s), f"{s}es" if s == "cross" else f"{s}s") for s in SHAPES]
    counts += [(colours.count(c), f"{c} objects") for c in COLOURS]
    # Draw the number first, uniformly; otherwise the answer would mostly be "1".
    wanted = int(rng.choice(sorted({n for n, _ in counts if n <= 4})))
    names = [name for n, name in counts if n == wanted]
    name = names[int(rng.integers(len(names)))]
    return Question("count", f"How many {name} are there?", str(wanted))


def _small(scene: Scene, rng: np.random.Generator) -> Question | None:
    if (dot := scene.dot) is None:
        return None
    if rng.random() < 0.5:
        return Question("small", "What colour is the dot?", dot.colour)
    return Question("small", "Where is the dot?", f"row {dot.row} column {dot.column}")


def _reading(scene: Scene, _: np.random.Generator) -> Question | None:
    if scene.sign is None:
        return None
    return Question("reading", "What does the sign say?", scene.sign.text)


def _pick(rng: np.random.Generator, things: Sequence[Item]) -> Item:
    return things[int(rng.integers(len(things)))]


def _unique(items: Sequence[Item], attribute: str) -> list[Item]:
    values = [getattr(item, attribute) for item in items]
    return [i for i in items if values.count(getattr(i, attribute)) == 1]


def _names(items: Sequence[Item]) -> list[tuple[str, Item]]:
    """Names that identify the items without ambiguity."""
    names = [(f"the {i.shape}", i) for i in _unique(items, "shape")]
    return names + [(f"the {i.colour} object", i) for i in _unique(items, "colour")]


def _named(items: Sequence[Item], rng: np.random.Generator) -> tuple[str, Item]:
    names = _names(items)
    return names[int(rng.integers(len(names)))]


# ------------------------------------------------------------------ everything in words


def caption(scene: Scene) -> str:
    """All that the scene shows, in raster order, which relates every grid cell to words."""
    parts = [
        (i.row, i.column, f"{i.colour} {i.shape} row {i.row} column {i.column}")
        for i in scene.items
    ]
    if (dot := scene.dot) is not None:
        parts.append((dot.row, dot.column, f"{dot.colour} dot row {dot.row} column {dot.column}"))
    if (sign := scene.sign) is not None:
        words = f"sign {sign.text} row {sign.row} column {sign.column}"
        parts.append((sign.row, sign.column, words))
    return ", ".join(text for *_, text in sorted(parts))


def clip_caption(clip: Clip) -> str:
    """What each frame shows, in order."""
    return ", ".join(f"frame {k} {caption(frame)}" for k, frame in enumerate(clip.frames, 1))


# ------------------------------------------------------------------ multiple choice


def candidates(text: str) -> list[str]:
    """The candidates that a question names: "..., the star or the heart?"."""
    return re.findall(r"the ([a-z ]+?)(?:,| or|\?)", text)


def multiple_choice(question: Question, choices: Sequence[str]) -> Question:
    """The question in MMBench's form, to be answered with a letter."""
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False)]
    text = "\n".join(
        [
            question.text,
            *lines,
            "Answer with the option's letter from the given choices directly.",
        ]
    )
    return Question(question.category, text, LETTERS[list(choices).index(question.answer)])


def options(
    question: Question, shown: Sequence[Item], rng: np.random.Generator, count: int = 4
) -> list[str]:
    """At most `count` options with the right one among them, in random order.

    shown: the items of the picture or the video. The wrong options are taken from these first, so
    that knowing which items are shown is not enough to find the answer.
    """
    answer = question.answer
    words = answer.split()
    rest: list[str] = []
    if question.category == "reading":
        firsts = [c for c in CHARACTERS if c != answer[0]]
        seconds = [c for c in CHARACTERS if c != answer[1]]
        i, j = rng.integers(len(seconds)), rng.integers(len(firsts))
        near = [answer[0] + seconds[i], firsts[j] + answer[1], firsts[j] + seconds[i]]
    elif question.category == "count":
        near, rest = [], [str(n) for n in range(5)]
    elif words[0] == "row":
        near = [f"row {i.row} column {i.column}" for i in shown]
        sides = range(1, SLOTS + 1)
        rest = [f"row {r} column {c}" for r in sides for c in sides]
    elif question.category in ("relation", "order"):
        near = candidates(question.text)
    elif answer in COLOURS:
        near, rest = [i.colour for i in shown], list(COLOURS)
    else:
        near, rest = [i.shape for i in shown], list(SHAPES)
    wrong = [str(t) for group in (near, rest) for t in rng.permutation(sorted(set(group)))]
    wrong = [t for t in dict.fromkeys(wrong) if t != answer][: count - 1]
    return [str(t) for t in rng.permutation([answer, *wrong])]
