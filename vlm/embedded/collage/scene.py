"""The content of a collage, drawn from a seed and a folder of pictures."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from vlm.embedded.collage.names import COLOURS, COLUMNS, ROWS, THINGS, WORDS

Split = Literal["train", "val", "test", "unseen"]
SPLITS: tuple[Split, ...] = ("train", "val", "test", "unseen")
IMAGE_SIZE = 224
SIDE = 3  # slots on a side
SLOT = IMAGE_SIZE / SIDE  # pixels
MOST = 4  # of one kind
HELD_OUT_STYLE = "fluent"
HELD_OUT_FONTS: dict[Split, tuple[str, ...]] = {
    "val": ("OpenSans-Bold", "P052-Bold"),
    "test": ("Lato-Black", "URWBookman-Demi", "Roboto-Medium"),
}


@dataclass(frozen=True)
class Thing:
    """One named thing.

    look: its file. row, column: its slot, from 0. x, y, size: centre and longer side in pixels.
    circle: the colour of a disc behind it, or None.
    """

    name: str
    look: Path
    row: int
    column: int
    x: float
    y: float
    size: float
    circle: str | None
    mirrored: bool

    @property
    def place(self) -> str:
        """Its slot in words, as "top left"."""
        return f"{ROWS[self.row]} {COLUMNS[self.column]}"


@dataclass(frozen=True)
class Sign:
    """A plate with one word, over two slots of a row. box: left, top, right, bottom in pixels."""

    word: str
    colour: str
    font: Path
    row: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Scene:
    """The content of a picture. crop: left, top and side of the background's part, in shares.

    things: the first `counted` are of one name, of which there are no others.
    """

    things: tuple[Thing, ...]
    counted: int
    sign: Sign | None
    background: Path
    crop: tuple[float, float, float]


class Pictures:
    """The files in a folder of `packages.prepare`, by split.

    Raises FileNotFoundError if the folder is missing or was not completed.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "complete").is_file():
            raise FileNotFoundError(
                f"{folder} holds no pictures: expected a folder that `python -m vlm prepare "
                "collage` made"
            )
        self.backgrounds = sorted((folder / "backgrounds").iterdir())
        self.fonts = sorted((folder / "fonts").iterdir())
        self.looks = {name: sorted((folder / "looks" / name).glob("*.png")) for name in THINGS}

    def backgrounds_of(self, split: Split) -> list[Path]:
        """A tenth of the backgrounds is for validation, a tenth for the two test splits."""
        rest = {"val": (3,), "test": (7,), "unseen": (7,)}.get(split, (0, 1, 2, 4, 5, 6, 8, 9))
        return [path for place, path in enumerate(self.backgrounds) if place % 10 in rest]

    def fonts_of(self, split: Split) -> list[Path]:
        """The fonts of a split."""
        held = [stem for stems in HELD_OUT_FONTS.values() for stem in stems]
        names = HELD_OUT_FONTS.get("test" if split == "unseen" else split)
        return [p for p in self.fonts if (p.stem in names if names else p.stem not in held)]

    def looks_of(self, name: str, split: Split) -> list[Path]:
        """The looks of one name: those of `HELD_OUT_STYLE` for "unseen", else all others."""
        unseen = split == "unseen"
        return [p for p in self.looks[name] if p.name.startswith(HELD_OUT_STYLE) == unseen]


def held_out_pair(first: str, second: str) -> bool:
    """Whether two names are never together in a training picture (a tenth of all pairs)."""
    return zlib.crc32(" ".join(sorted((first, second))).encode()) % 10 == 0


def make_scene(seed: int, split: Split, pictures: Pictures) -> Scene:
    """The scene number `seed` of a split: 2 to 5 names, up to four of the first, maybe a sign.

    Scenes of other splits than "train" hold at least one pair of names that training never shows
    together, and have backgrounds and fonts of their own.

    Raises ValueError if `split` is not one of `SPLITS`.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    rng = np.random.default_rng((SPLITS.index(split), seed))
    sign = _sign(rng, split, pictures) if rng.random() < 0.6 else None
    taken = set()
    if sign is not None:
        first = round(sign.box[0] / SLOT)
        taken = {(sign.row, first), (sign.row, first + 1)}
    slots = [(r, c) for r in range(SIDE) for c in range(SIDE) if (r, c) not in taken]
    slots = [slots[int(k)] for k in rng.permutation(len(slots))]
    counted = int(rng.integers(1, MOST + 1))
    names = _names(rng, int(rng.integers(2, min(5, len(slots) - counted + 1) + 1)), split)
    circles = list(COLOURS)
    rng.shuffle(circles)
    things = []
    for place, slot in enumerate(slots[: counted + len(names) - 1]):
        name = names[max(0, place - counted + 1)]
        circle = circles[place] if place >= counted - 1 and rng.random() < 0.5 else None
        things.append(_thing(rng, name, slot, pictures.looks_of(name, split), circle))
    backgrounds = pictures.backgrounds_of(split)
    background = backgrounds[int(rng.integers(len(backgrounds)))]
    side = float(rng.uniform(0.6, 1.0))
    crop = float(rng.random()), float(rng.random()), side
    return Scene(tuple(things), counted, sign, background, crop)


def _names(rng: np.random.Generator, count: int, split: Split) -> list[str]:
    known = list(THINGS)
    while True:
        names = [known[int(k)] for k in rng.choice(len(known), count, replace=False)]
        held = any(held_out_pair(a, b) for a in names for b in names if a < b)
        if held == (split != "train"):
            return names


def _thing(
    rng: np.random.Generator,
    name: str,
    slot: tuple[int, int],
    looks: list[Path],
    circle: str | None,
) -> Thing:
    size = float(rng.uniform(48, 80 if circle is None else 58))
    room = 6.0
    dx, dy = rng.uniform(-room, room, 2)
    x, y = (slot[1] + 0.5) * SLOT + dx, (slot[0] + 0.5) * SLOT + dy
    look = looks[int(rng.integers(len(looks)))]
    return Thing(
        name, look, *slot, float(x), float(y), size, circle, mirrored=bool(rng.random() < 0.5)
    )


def _sign(rng: np.random.Generator, split: Split, pictures: Pictures) -> Sign:
    fonts = pictures.fonts_of(split)
    word = WORDS[int(rng.integers(len(WORDS)))]
    row, column = int(rng.integers(SIDE)), int(rng.integers(SIDE - 1))
    colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
    height = float(rng.uniform(38, 52))
    left, top = column * SLOT + 4, (row + 0.5) * SLOT - height / 2 + float(rng.uniform(-8, 8))
    box = left, top, left + 2 * SLOT - 8, top + height
    return Sign(word, colour, fonts[int(rng.integers(len(fonts)))], row, box)
