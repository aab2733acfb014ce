"""The content of a scene or a clip, drawn from a seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 40, 40),
    "orange": (250, 140, 20),
    "yellow": (245, 230, 50),
    "green": (40, 170, 60),
    "cyan": (60, 220, 230),
    "blue": (50, 80, 230),
    "purple": (150, 50, 190),
    "white": (245, 245, 245),
}
COLOUR_NAMES = tuple(COLOURS)
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "heart")
CHARACTERS = "ABCDEFGHJKLMNPRSTUVWXYZ23456789"  # without look-alikes: I O Q 0 1

IMAGE_SIZE = 96
SLOTS = 4  # slots per side
SLOT = IMAGE_SIZE // SLOTS  # pixels
FRAMES = 4  # of a clip, a second apart

# Photographs of scikit-image and fonts of matplotlib, by split; "" is Pillow's own font. Only the
# training split has backgrounds other than photographs.
PHOTOS: dict[Split, tuple[str, ...]] = {
    "train": ("astronaut.png", "coffee.png", "rocket.jpg", "brick.png", "motorcycle_left.png"),
    "val": ("gravel.png", "hubble_deep_field.jpg"),
    "test": ("chelsea.png", "grass.png", "retina.jpg"),
}
FONTS: dict[Split, tuple[str, ...]] = {
    "train": (
        "",
        "DejaVuSans-Bold.ttf",
        "DejaVuSans-BoldOblique.ttf",
        "DejaVuSans-Oblique.ttf",
        "DejaVuSansMono.ttf",
        "DejaVuSansMono-Oblique.ttf",
        "DejaVuSerif.ttf",
        "DejaVuSerif-Bold.ttf",
        "DejaVuSerif-Italic.ttf",
        "STIXGeneral.ttf",
        "STIXGeneralBol.ttf",
        "STIXGeneralItalic.ttf",
        "cmb10.ttf",
        "cmr10.ttf",
        "cmti10.ttf",
        "cmtt10.ttf",
    ),
    "val": ("DejaVuSans.ttf",),
    "test": ("DejaVuSansMono-Bold.ttf", "cmss10.ttf"),
}


@dataclass(frozen=True)
class Item:
    """One coloured shape; `row` and `column` are 1-based slots, centre and radius are pixels.

    outline: distances of the corners from the centre, in radii, for an item drawn as a shape that
    has no name.
    """

    shape: str
    colour: str
    row: int
    column: int
    x: float
    y: float
    radius: float
    outline: tuple[float, ...] = ()


@dataclass(frozen=True)
class Dot:
    """One small disc, about a quarter of a grid cell."""

    colour: str
    row: int
    column: int
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Sign:
    """A pale plate with dark text; centres, size and stroke of its characters are pixels."""

    text: str
    row: int
    column: int
    centres: tuple[tuple[float, float], ...]
    font: str
    size: float = 12.5
    stroke: float = 0.0


@dataclass(frozen=True)
class Scene:
    """The content of a picture, from which `draw` and `questions` work.

    photo: the photograph behind it, or None for a shaded ground. background: a seed.
    """

    items: tuple[Item, ...]
    dot: Dot | None
    sign: Sign | None
    photo: str | None
    background: int


@dataclass(frozen=True)
class Clip:
    """What a video shows: one picture a second."""

    frames: tuple[Scene, ...]


def held_out_pair(shape: str, colour: str) -> bool:
    """One colour of each shape (8 of 64 pairs) is kept for validation and test."""
    return (3 * SHAPES.index(shape) + 5 * COLOUR_NAMES.index(colour)) % len(COLOURS) == 0


def held_out_text(text: str) -> bool:
    """About one sign text in seven is kept for validation and test."""
    return sum((i + 1) * ord(character) for i, character in enumerate(text)) % 7 == 0


def make_scene(seed: int, split: Split = "train") -> Scene:
    """Draw the scene number `seed` of a split.

    Raises:
        ValueError: `split` is not one of "train", "val", "test".
    """
    rng = _generator(split, seed, 0)
    slots = rng.permutation(SLOTS * SLOTS)
    pairs = _pairs(rng, int(rng.integers(5, 9)), split)
    items = [_item(rng, *pair, int(slot)) for pair, slot in zip(pairs, slots[2:], strict=False)]
    items.sort(key=lambda item: (item.row, item.column))
    sign, dot = _sign(rng, int(slots[0]), split), _dot(rng, int(slots[1]))
    return Scene(tuple(items), dot, sign, _photo(rng, split), int(rng.integers(2**31)))


def make_clip(seed: int, split: Split = "train") -> Clip:
    """Draw the clip number `seed` of a split; each shape is seen once in it.

    Raises:
        ValueError: `split` is not one of "train", "val", "test".
    """
    rng = _generator(split, seed, 1)
    pairs = [(SHAPES[int(s)], _colour(rng, SHAPES[int(s)], split)) for s in rng.permutation(8)]
    if split != "train":
        pairs[0] = pairs[0][0], _held_out_colour(pairs[0][0])
    pairs = [pairs[int(k)] for k in rng.permutation(8)]
    photo, background = _photo(rng, split), int(rng.integers(2**31))
    each, frames = len(pairs) // FRAMES, []
    for frame in range(FRAMES):
        slots = sorted(rng.permutation(SLOTS * SLOTS)[:each].tolist())
        shown = pairs[each * frame : each * (frame + 1)]
        items = tuple(_item(rng, *pair, slot) for pair, slot in zip(shown, slots, strict=True))
        frames.append(Scene(items, None, None, photo, background))
    return Clip(tuple(frames))


def _generator(split: Split, seed: int, kind: int) -> np.random.Generator:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    return np.random.default_rng((SPLITS.index(split), seed, kind))


def _item(rng: np.random.Generator, shape: str, colour: str, slot: int) -> Item:
    radius = float(rng.uniform(6.0, 9.5))
    return Item(shape, colour, *_at(rng, slot, SLOT / 2 - radius - 0.5), radius)


def _dot(rng: np.random.Generator, slot: int) -> Dot:
    radius = float(rng.uniform(2.0, 2.6))
    return Dot(COLOUR_NAMES[int(rng.integers(8))], *_at(rng, slot, SLOT / 2 - 4), radius)


def _at(rng: np.random.Generator, slot: int, room: float) -> tuple[int, int, float, float]:
    row, column = divmod(slot, SLOTS)
    x, y = rng.uniform(-room, room, 2) + (np.array([column, row]) + 0.5) * SLOT
    return row + 1, column + 1, float(x), float(y)


def _pairs(rng: np.random.Generator, count: int, split: Split) -> list[tuple[str, str]]:
    # One attribute is repeated, so that counts of 2 to 4 are as common as counts of 1.
    repeats = int(rng.integers(1, 5))
    fixed = int(rng.integers(2)), int(rng.integers(8))
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        s, c = (int(v) for v in rng.integers(0, 8, 2))
        if len(pairs) < repeats:
            s, c = (fixed[1], c) if fixed[0] else (s, fixed[1])
        pair = SHAPES[s], COLOUR_NAMES[c]
        if split == "train" and held_out_pair(*pair):
            continue
        pairs.append(pair)
    if split != "train":
        shape = SHAPES[int(rng.integers(8))]
        pairs[-1] = shape, _held_out_colour(shape)
    return pairs


def _colour(rng: np.random.Generator, shape: str, split: Split) -> str:
    known = [c for c in COLOUR_NAMES if split != "train" or not held_out_pair(shape, c)]
    return known[int(rng.integers(len(known)))]


def _held_out_colour(shape: str) -> str:
    return next(c for c in COLOUR_NAMES if held_out_pair(shape, c))


def _photo(rng: np.random.Generator, split: Split) -> str | None:
    names = PHOTOS[split]
    name = names[int(rng.integers(len(names)))]
    return None if rng.random() < 0.3 and split == "train" else name


def _sign(rng: np.random.Generator, slot: int, split: Split) -> Sign:
    while True:
        text = "".join(CHARACTERS[i] for i in rng.integers(0, len(CHARACTERS), 2))
        if held_out_text(text) == (split != "train"):
            break
    row, column = divmod(slot, SLOTS)
    x = (column + 0.5) * SLOT + float(rng.uniform(-1.5, 1.5))
    y = (row + 0.5) * SLOT + float(rng.uniform(-3.5, 3.5))
    font = FONTS[split][int(rng.integers(len(FONTS[split])))]
    sign = Sign(text, row + 1, column + 1, ((x - 4.75, y), (x + 4.75, y)), font)
    if split != "train":
        return sign
    # There are few fonts for training. Sizes and weights are varied, to generalise to other fonts.
    size, stroke = rng.uniform(11.0, 13.5), max(0.0, rng.uniform(-0.3, 0.4))
    return replace(sign, size=float(size), stroke=float(stroke))
