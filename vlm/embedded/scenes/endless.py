"""Clips that do not end: shapes come and go, questions are asked while they play.

Each shape has one colour in a clip. Two shapes are on screen at any time. Four of them come again
and again; each of the four others is seen once, in one of the spans between the marks at which
questions are asked, and is gone before its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vlm.embedded.scenes.questions import Question
from vlm.embedded.scenes.scene import (
    COLOUR_NAMES,
    PHOTOS,
    SHAPES,
    SLOTS,
    SPLITS,
    Item,
    Scene,
    Split,
)

MARKS = (1, 4, 16, 64)
"""Minutes at which questions are asked."""
GONE = 8  # steps before a mark in which nothing rare is shown


@dataclass(frozen=True)
class Event:
    """One shape on screen in the steps start <= step < end."""

    item: Item
    start: int
    end: int


@dataclass(frozen=True)
class Endless:
    """The clip number `seed` of a split. per_minute: pictures a minute."""

    seed: int
    split: Split = "test"
    per_minute: int = 6

    def __post_init__(self) -> None:
        if self.per_minute * MARKS[0] < GONE // 2 + 2:
            raise ValueError(
                f"per_minute is {self.per_minute}: expected at least {GONE // 2 + 2}, so that "
                "something can come and go in the first minute"
            )
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, got {self.split!r}")

    def _rng(self, part: int) -> np.random.Generator:
        return np.random.default_rng((SPLITS.index(self.split), self.seed, 2, part))

    @cached_property
    def _cast(self) -> tuple[list[str], dict[str, str]]:
        """The shapes, those seen once first, and the colour of each."""
        rng = self._rng(0)
        shapes = [SHAPES[int(k)] for k in rng.permutation(len(SHAPES))]
        return shapes, {shape: COLOUR_NAMES[int(rng.integers(8))] for shape in shapes}

    @cached_property
    def rare(self) -> tuple[Event, ...]:
        """The event of each shape that is seen once, one before each mark."""
        rng, shapes = self._rng(1), self._cast[0]
        found, begin = [], 0
        for mark, shape in zip(MARKS, shapes, strict=False):
            end = mark * self.per_minute
            last = max(begin + 1, end - min(GONE, (end - begin) // 2) - 2)
            start = int(rng.integers(begin, last))
            found.append(Event(self._item(rng, shape), start, start + 2))
            begin = end
        return tuple(found)

    @cached_property
    def common(self) -> tuple[tuple[Event, ...], ...]:
        """The events of the shapes that come again, in each of the two lanes."""
        rng, shapes = self._rng(2), self._cast[0][len(MARKS) :]
        lanes = []
        for lane in range(2):
            events, start = [], 0
            while start <= MARKS[-1] * self.per_minute:
                shape = shapes[2 * lane + int(rng.integers(2))]
                end = start + int(rng.integers(2, 7))
                events.append(Event(self._item(rng, shape), start, end))
                start = end
            lanes.append(tuple(events))
        return tuple(lanes)

    def _item(self, rng: np.random.Generator, shape: str) -> Item:
        row, column = (int(n) for n in rng.integers(0, SLOTS, 2))
        radius = float(rng.uniform(6.0, 9.5))
        side = 96 / SLOTS
        room = side / 2 - radius - 0.5
        x, y = rng.uniform(-room, room, 2) + (np.array([column, row]) + 0.5) * side
        return Item(shape, self._cast[1][shape], row + 1, column + 1, float(x), float(y), radius)

    def shown(self, step: int) -> tuple[Item, ...]:
        """What is on screen at a step. A rare shape takes the place of the second lane's."""
        lanes = [
            next(event.item for event in lane if event.start <= step < event.end)
            for lane in self.common
        ]
        for event in self.rare:
            if event.start <= step < event.end:
                lanes[1] = event.item
        first, second = lanes
        if (first.row, first.column) == (second.row, second.column):
            return (first,) if second.shape not in self._cast[0][: len(MARKS)] else (second,)
        return (first, second)

    def scene(self, step: int) -> Scene:
        """The picture at a step; the ground is the same in the whole clip."""
        rng = self._rng(3)
        photos = PHOTOS[self.split]
        photo = photos[int(rng.integers(len(photos)))]
        return Scene(self.shown(step), None, None, photo, int(rng.integers(2**31)))

    def questions(self, minute: int) -> list[Question]:
        """Questions after `minute` minutes, of the categories now, past, order and count.

        now: a shape on screen. past: each rare shape so far. order: which of three was seen first.
        count: how many different shapes of a colour there were.
        """
        if minute not in MARKS:
            raise ValueError(f"minute is {minute}: expected one of {MARKS}")
        steps, rng = minute * self.per_minute, self._rng(10 + minute)
        colours, first = self._cast[1], self._first(steps)
        asked = [
            Question("now", f"What colour is the {item.shape}?", item.colour)
            for item in self.shown(steps - 1)
        ]
        rare = [event.item for event in self.rare if event.end <= steps]
        asked += [Question("past", f"What colour is the {x.shape}?", x.colour) for x in rare]
        one = rare[int(rng.integers(len(rare)))].shape
        others = [s for s in first if s != one and first[s] != first[one]]
        pairs = [(a, b) for a in others for b in others if a < b and first[a] != first[b]]
        if pairs:
            a, b = pairs[int(rng.integers(len(pairs)))]
            three = [(a, b, one)[int(k)] for k in rng.permutation(3)]
            text = f"Which is seen first, the {three[0]}, the {three[1]} or the {three[2]}?"
            asked.append(Question("order", text, min(three, key=first.__getitem__)))
        colour = colours[list(first)[int(rng.integers(len(first)))]]
        number = sum(colours[shape] == colour for shape in first)
        asked.append(Question("count", f"How many {colour} objects are there?", str(number)))
        return asked

    def _first(self, steps: int) -> dict[str, int]:
        """The step at which each shape was first seen, of the first `steps`."""
        found: dict[str, int] = {}
        for step in range(steps):
            for item in self.shown(step):
                found.setdefault(item.shape, step)
        return found
