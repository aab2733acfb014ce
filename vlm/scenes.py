"""Synthetic scenes: pictures, questions and answers for the embedded model.

A scene holds 4 to 8 coloured shapes and one sign with two characters, each in its own slot of a
4 x 4 arrangement, on a shaded background. Everything is drawn from a seed. The splits are disjoint
by construction: the colour-shape pairs of `held_out_pair` and the sign texts of `held_out_text`
are never drawn for training, and every test scene holds some of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

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
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "heart")
CHARACTERS = "ABCDEFGHJKLMNPRSTUVWXYZ23456789"  # without look-alikes: I O Q 0 1
CATEGORIES = ("colour", "shape", "place", "count", "reading")

IMAGE_SIZE = 96
SLOTS = 4  # slots per side
_SLOT = IMAGE_SIZE // SLOTS
_OVERSAMPLE = 3
_COLOUR_NAMES = tuple(COLOURS)


@dataclass(frozen=True)
class Item:
    """One coloured shape; `row` and `column` are 1-based slots, centre and radius are pixels."""

    shape: str
    colour: str
    row: int
    column: int
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Sign:
    """A pale plate with dark text; the centres of its characters are pixels."""

    text: str
    row: int
    column: int
    centres: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Scene:
    """What a picture shows; `draw` and `questions` follow from it alone."""

    items: tuple[Item, ...]
    sign: Sign
    background: int


@dataclass(frozen=True)
class Question:
    """One question with its one right answer; `category` is one of `CATEGORIES`."""

    category: str
    text: str
    answer: str


def held_out_pair(shape: str, colour: str) -> bool:
    """One colour of each shape (8 of 64 pairs) is kept for validation and test."""
    return (3 * SHAPES.index(shape) + 5 * _COLOUR_NAMES.index(colour)) % len(COLOURS) == 0


def held_out_text(text: str) -> bool:
    """About one sign text in seven is kept for validation and test."""
    return sum((i + 1) * ord(character) for i, character in enumerate(text)) % 7 == 0


def make_scene(seed: int, split: Split = "train") -> Scene:
    """Draw the scene number `seed` of a split.

    Raises:
        ValueError: `split` is not one of "train", "val", "test".
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    rng = np.random.default_rng((SPLITS.index(split), seed))
    slots = rng.permutation(SLOTS * SLOTS)
    count = int(rng.integers(4, 9))
    pairs = _pairs(rng, count, split)
    items = []
    for (shape, colour), slot in zip(pairs, slots[1:], strict=False):
        row, column = divmod(int(slot), SLOTS)
        radius = float(rng.uniform(6.0, 9.5))
        room = _SLOT / 2 - radius - 0.5
        x, y = rng.uniform(-room, room, 2) + (np.array([column, row]) + 0.5) * _SLOT
        items.append(Item(shape, colour, row + 1, column + 1, float(x), float(y), radius))
    items.sort(key=lambda item: (item.row, item.column))
    return Scene(tuple(items), _sign(rng, int(slots[0]), split), int(rng.integers(2**31)))


def _pairs(rng: np.random.Generator, count: int, split: Split) -> list[tuple[str, str]]:
    # One attribute is repeated, so that counts of 2 to 4 are as common as counts of 1.
    repeats = int(rng.integers(1, 5))
    fixed = int(rng.integers(2)), int(rng.integers(8))
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        s, c = (int(v) for v in rng.integers(0, 8, 2))
        if len(pairs) < repeats:
            s, c = (fixed[1], c) if fixed[0] else (s, fixed[1])
        pair = SHAPES[s], _COLOUR_NAMES[c]
        if split == "train" and held_out_pair(*pair):
            continue
        pairs.append(pair)
    if split != "train":
        shape = SHAPES[int(rng.integers(8))]
        pairs[-1] = shape, next(c for c in _COLOUR_NAMES if held_out_pair(shape, c))
    return pairs


def _sign(rng: np.random.Generator, slot: int, split: Split) -> Sign:
    while True:
        text = "".join(CHARACTERS[i] for i in rng.integers(0, len(CHARACTERS), 2))
        if held_out_text(text) == (split != "train"):
            break
    row, column = divmod(slot, SLOTS)
    x = (column + 0.5) * _SLOT + float(rng.uniform(-1.5, 1.5))
    y = (row + 0.5) * _SLOT + float(rng.uniform(-3.5, 3.5))
    return Sign(text, row + 1, column + 1, ((x - 4.75, y), (x + 4.75, y)))


# ------------------------------------------------------------------ drawing


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _polygon(item: Item, scale: float) -> list[tuple[float, float]]:
    x, y, r = item.x * scale, item.y * scale, item.radius * scale

    def around(angles: Sequence[float], radii: Sequence[float]) -> list[tuple[float, float]]:
        return [
            (x + q * r * math.sin(a), y - q * r * math.cos(a))
            for a, q in zip(angles, radii, strict=True)
        ]

    tau = math.tau
    if item.shape == "square":
        return around([tau / 8 + k * tau / 4 for k in range(4)], [1.15] * 4)
    if item.shape == "triangle":
        return around([k * tau / 3 for k in range(3)], [1.15] * 3)
    if item.shape == "diamond":
        return around([k * tau / 4 for k in range(4)], [1.1, 0.7, 1.1, 0.7])
    if item.shape == "star":
        return around([k * tau / 10 for k in range(10)], [1.15, 0.45] * 5)
    if item.shape == "cross":
        a, b = 1.0, 0.36
        corners = [(b, a), (b, b), (a, b), (a, -b), (b, -b), (b, -a)]
        corners += [(-u, -v) for u, v in corners]
        return [(x + u * r, y - v * r) for u, v in corners]
    if item.shape == "heart":
        ts = np.linspace(0, tau, 40, endpoint=False)
        return [
            (
                x + r * math.sin(t) ** 3,
                y
                - r
                / 15
                * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)),
            )
            for t in ts
        ]
    raise ValueError(f"shape must be one of {SHAPES}, got {item.shape!r}")


def _draw_item(draw: ImageDraw.ImageDraw, item: Item, fill: object, scale: float) -> None:
    if item.shape in ("circle", "ring"):
        x, y, r = item.x * scale, item.y * scale, item.radius * scale
        box = (x - r, y - r, x + r, y + r)
        if item.shape == "circle":
            draw.ellipse(box, fill=fill)  # type: ignore[arg-type]
        else:
            draw.ellipse(box, outline=fill, width=round(0.42 * r))  # type: ignore[arg-type]
    else:
        draw.polygon(_polygon(item, scale), fill=fill)  # type: ignore[arg-type]


def draw(scene: Scene, size: int = IMAGE_SIZE) -> Image.Image:
    """Draw a scene as an RGB picture of `size` x `size` pixels."""
    rng = np.random.default_rng(scene.background)
    low = rng.uniform(25, 110, 3) + rng.normal(0, 14, (4, 4, 3))
    canvas = Image.fromarray(np.clip(low, 0, 130).astype(np.uint8))
    full = size * _OVERSAMPLE
    canvas = canvas.resize((full, full), Image.Resampling.BILINEAR)
    pen, scale = ImageDraw.Draw(canvas), full / IMAGE_SIZE
    for item in scene.items:
        shade = np.array(COLOURS[item.colour]) + rng.normal(0, 9, 3)
        fill = tuple(int(v) for v in np.clip(shade, 0, 255))
        _draw_item(pen, item, fill, scale)
    (x0, y0), (x1, y1) = scene.sign.centres[0], scene.sign.centres[-1]
    plate = (x0 - 5.75, y0 - 7.0, x1 + 5.75, y1 + 7.0)
    pen.rounded_rectangle([v * scale for v in plate], radius=2 * scale, fill=(225, 220, 200))
    for character, (x, y) in zip(scene.sign.text, scene.sign.centres, strict=True):
        at, font = (x * scale, y * scale), _font(round(12.5 * scale))
        pen.text(at, character, fill=(20, 20, 25), font=font, anchor="mm")
    pixels = np.asarray(canvas.reduce(_OVERSAMPLE), dtype=np.float32)
    noisy = pixels + rng.normal(0, 4, pixels.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


# ------------------------------------------------------------------ questions


def questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """All kinds of questions that the scene can answer, one of each kind, in a fixed order."""
    makers = (_colour, _shape, _place, _count, _reading)
    return [question for make in makers if (question := make(scene, rng)) is not None]


def _pick(rng: np.random.Generator, things: Sequence[Item]) -> Item:
    return things[int(rng.integers(len(things)))]


def _unique(scene: Scene, attribute: str) -> list[Item]:
    values = [getattr(item, attribute) for item in scene.items]
    return [i for i in scene.items if values.count(getattr(i, attribute)) == 1]


def _colour(scene: Scene, rng: np.random.Generator) -> Question | None:
    if not (known := _unique(scene, "shape")):
        return None
    item = _pick(rng, known)
    return Question("colour", f"What colour is the {item.shape}?", item.colour)


def _shape(scene: Scene, rng: np.random.Generator) -> Question | None:
    if not (known := _unique(scene, "colour")):
        return None
    item = _pick(rng, known)
    return Question("shape", f"What shape is the {item.colour} object?", item.shape)


def _place(scene: Scene, rng: np.random.Generator) -> Question | None:
    by_shape, by_colour = _unique(scene, "shape"), _unique(scene, "colour")
    options = [(i, f"the {i.shape}") for i in by_shape]
    options += [(i, f"the {i.colour} object") for i in by_colour]
    if not options:
        return None
    item, name = options[int(rng.integers(len(options)))]
    return Question("place", f"Where is {name}?", f"row {item.row} column {item.column}")


def _count(scene: Scene, rng: np.random.Generator) -> Question:
    shapes = [item.shape for item in scene.items]
    colours = [item.colour for item in scene.items]
    counts = [(shapes.count(s), f"{s}es" if s == "cross" else f"{s}s") for s in SHAPES]
    counts += [(colours.count(c), f"{c} objects") for c in COLOURS]
    # Uniform over the numbers first: otherwise "1" would be right most of the time.
    wanted = int(rng.choice(sorted({n for n, _ in counts})))
    names = [name for n, name in counts if n == wanted]
    name = names[int(rng.integers(len(names)))]
    return Question("count", f"How many {name} are there?", str(wanted))


def _reading(scene: Scene, rng: np.random.Generator) -> Question:
    return Question("reading", "What does the sign say?", scene.sign.text)


def caption(scene: Scene) -> str:
    """Everything the scene shows, in raster order: the dense text that ties cells to words."""
    parts = [
        (i.row, i.column, f"{i.colour} {i.shape} row {i.row} column {i.column}")
        for i in scene.items
    ]
    sign = scene.sign
    parts.append((sign.row, sign.column, f"sign {sign.text} row {sign.row} column {sign.column}"))
    return ", ".join(text for *_, text in sorted(parts))


# ------------------------------------------------------------------ what each cell shows


@dataclass(frozen=True)
class CellLabels:
    """What each cell of a `grid` x `grid` division shows; (grid * grid,) int64 arrays.

    `kind` is 0 blank, 1 item, 2 sign; `colour` and `shape` are indices + 1 (0: none); `row` and
    `column` are the slot of what the cell shows (0: blank); `character` is an index + 1 and `place`
    1 or 2 where a character has its centre (0: none); `centre` is 1 where an item has its centre.
    """

    kind: np.ndarray
    colour: np.ndarray
    shape: np.ndarray
    row: np.ndarray
    column: np.ndarray
    character: np.ndarray
    place: np.ndarray
    centre: np.ndarray


def cell_labels(scene: Scene, grid: int = 12, threshold: float = 0.12) -> CellLabels:
    """Label the cells; a cell shows an item that covers at least `threshold` of its area."""
    cell = IMAGE_SIZE // grid
    names = ("kind", "colour", "shape", "row", "column", "character", "place", "centre")
    out = {name: np.zeros((grid, grid), dtype=np.int64) for name in names}
    for item in scene.items:
        mask = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE))
        _draw_item(ImageDraw.Draw(mask), item, 255, 1.0)
        covered = np.asarray(mask, dtype=np.float32).reshape(grid, cell, grid, cell).mean((1, 3))
        shown = covered >= 255 * threshold
        out["kind"][shown] = 1
        out["colour"][shown] = _COLOUR_NAMES.index(item.colour) + 1
        out["shape"][shown] = SHAPES.index(item.shape) + 1
        out["row"][shown], out["column"][shown] = item.row, item.column
        out["centre"][int(item.y // cell), int(item.x // cell)] = 1
    sign = scene.sign
    (x0, y0), (x1, _) = sign.centres[0], sign.centres[-1]
    plate = np.s_[
        int((y0 - 4) // cell) : int((y0 + 4) // cell) + 1, int(x0 // cell) : int(x1 // cell) + 1
    ]
    out["kind"][plate], out["row"][plate], out["column"][plate] = 2, sign.row, sign.column
    for place, (character, (x, y)) in enumerate(zip(sign.text, sign.centres, strict=True), 1):
        at = int(y // cell), int(x // cell)
        out["character"][at], out["place"][at] = CHARACTERS.index(character) + 1, place
    return CellLabels(**{name: array.reshape(-1) for name, array in out.items()})
