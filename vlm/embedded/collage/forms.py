"""Other forms of questions about collages: captions, and options for multiple choice.

They draw from generators of their own, so the questions of `questions` stay what they are.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from vlm.embedded.collage.names import COLOURS, COLUMNS, ROWS, THINGS, WORDS, plural, with_article
from vlm.embedded.collage.questions import LETTERS, Question
from vlm.embedded.collage.scene import MOST, Scene

_NUMBERS = {2: "two", 3: "three", 4: "four"}
_NAMED = re.compile(
    r"\b(?:" + "|".join(f"(?P<{n}>{n}|{plural(n)})" for n in sorted(THINGS, key=len)[::-1]) + r")\b"
)


def caption(scene: Scene, rng: np.random.Generator) -> Question:
    """A request to describe the picture, and a description: every kind of thing, and the sign."""
    ways = ["Describe the picture.", "What does the picture show?", "What is in the picture?"]
    counts = Counter(thing.name for thing in scene.things)
    parts = [
        with_article(name) if count == 1 else f"{_NUMBERS[count]} {plural(name)}"
        for name, count in counts.items()
    ]
    parts = [parts[int(k)] for k in rng.permutation(len(parts))]
    if scene.sign is not None:
        article = "an" if scene.sign.colour[0] in "aeiou" else "a"
        parts.append(f"{article} {scene.sign.colour} sign that says {scene.sign.word}")
    answer = ", ".join(parts[:-1]) + " and " + parts[-1]
    return Question("caption", ways[int(rng.integers(len(ways)))], f"{answer}.")


def named(text: str) -> set[str]:
    """The names of things in a text, in the singular or plural; what a sign says is left out."""
    shown = re.sub(r"\bsays \w+", "", text.lower())
    found = (match.lastgroup for match in _NAMED.finditer(shown))
    return {name for name in found if name is not None}


def options(question: Question, scene: Scene, rng: np.random.Generator) -> tuple[str, list[str]]:
    """The question without the options that its text may hold, and two to four options, shuffled.

    The answer is among them, as a text in place of a letter.
    """
    lines = question.text.splitlines()
    if question.category == "choice":
        return lines[0], [line.partition(". ")[2] for line in lines[1:-1]]
    others = [text for text in _others(question, scene) if text != question.answer]
    near = {thing.name for thing in scene.things}
    # Things that are shown are the harder options.
    order = sorted(rng.permutation(len(others)), key=lambda k: others[int(k)] not in near)
    chosen = [question.answer, *(others[int(k)] for k in order[: len(LETTERS) - 1])]
    return lines[0], [chosen[int(k)] for k in rng.permutation(len(chosen))]


def answer_of(question: Question) -> str:
    """The answer in words, also of a question whose answer is a letter."""
    if question.category != "choice":
        return question.answer
    (line,) = (x for x in question.text.splitlines() if x.startswith(f"{question.answer}. "))
    return line.partition(". ")[2]


def _others(question: Question, scene: Scene) -> list[str]:
    """What could be answered to a question of this kind."""
    if question.answer in ("yes", "no"):
        return ["yes", "no"]
    if question.category == "relation":
        return re.findall(r"the (\w+)(?: or|\?)", question.text)
    kinds = {
        "what": list(THINGS),
        "where": [f"{row} {column}" for row in ROWS for column in COLUMNS],
        "color": list(COLOURS),
        "count": [str(number) for number in range(1, MOST + 1)],
        "read": list(WORDS),
    }
    return kinds[question.category]
