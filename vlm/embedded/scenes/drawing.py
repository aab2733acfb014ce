"""Scenes and clips as pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vlm.embedded.scenes.scene import COLOURS, IMAGE_SIZE, SHAPES, Clip, Item, Scene, Sign

_OVERSAMPLE = 3
_BRIGHTEST = 130  # of the background


def draw(scene: Scene, size: int = IMAGE_SIZE) -> Image.Image:
    """Draw a scene as an RGB picture of `size` x `size` pixels.

    Raises:
        ImportError: scikit-image (photographs) or matplotlib (fonts) is not installed.
    """
    rng = np.random.default_rng(scene.background)
    full = size * _OVERSAMPLE
    canvas = _photograph(rng, scene.photo, full) if scene.photo else _shaded(rng, full)
    pen, scale = ImageDraw.Draw(canvas), full / IMAGE_SIZE

    def shaded(colour: str) -> tuple[int, ...]:
        shade = np.array(COLOURS[colour]) + rng.normal(0, 9, 3)
        return tuple(int(v) for v in np.clip(shade, 0, 255))

    for item in scene.items:
        draw_item(pen, item, shaded(item.colour), scale)
    if (dot := scene.dot) is not None:
        x, y, r = dot.x * scale, dot.y * scale, dot.radius * scale
        pen.ellipse((x - r, y - r, x + r, y + r), fill=shaded(dot.colour))
    if scene.sign is not None:
        _draw_sign(pen, scene.sign, scale)
    pixels = np.asarray(canvas.reduce(_OVERSAMPLE), dtype=np.float32)
    noisy = pixels + rng.normal(0, 4, pixels.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def draw_clip(clip: Clip, size: int = IMAGE_SIZE) -> list[Image.Image]:
    """Draw the frames of a clip as RGB pictures of `size` x `size` pixels."""
    return [draw(frame, size) for frame in clip.frames]


def draw_item(
    pen: ImageDraw.ImageDraw, item: Item, fill: int | tuple[int, ...], scale: float
) -> None:
    """Draw one shape; `scale` is pixels of the canvas to a pixel of the scene."""
    if item.shape in ("circle", "ring") and not item.outline:
        x, y, r = item.x * scale, item.y * scale, item.radius * scale
        box = (x - r, y - r, x + r, y + r)
        if item.shape == "circle":
            pen.ellipse(box, fill=fill)
        else:
            pen.ellipse(box, outline=fill, width=round(0.42 * r))
    else:
        pen.polygon(_polygon(item, scale), fill=fill)


def _shaded(rng: np.random.Generator, full: int) -> Image.Image:
    low = rng.uniform(25, 110, 3) + rng.normal(0, 14, (4, 4, 3))
    canvas = Image.fromarray(np.clip(low, 0, _BRIGHTEST).astype(np.uint8))
    return canvas.resize((full, full), Image.Resampling.BILINEAR)


@cache
def _photo(name: str) -> np.ndarray:
    try:
        import skimage
    except ImportError as error:
        raise ImportError(
            f"the photograph {name!r} comes with scikit-image: pip install 'foveate[demo]'"
        ) from error
    with Image.open(Path(skimage.__path__[0]) / "data" / name) as file:
        photo = file.convert("RGB")
        photo.thumbnail((400, 400))
        return np.asarray(photo)


def _photograph(rng: np.random.Generator, name: str, full: int) -> Image.Image:
    """A darkened square piece of a photograph, turned and mirrored at random."""
    photo = _photo(name)
    side = int(rng.uniform(0.3, 1.0) * min(photo.shape[:2]))
    y, x = (int(rng.integers(0, extent - side + 1)) for extent in photo.shape[:2])
    piece = np.rot90(photo[y : y + side, x : x + side], int(rng.integers(4)))
    piece = piece[:, ::-1] if rng.random() < 0.5 else piece
    dark = piece * (rng.uniform(0.6, 1.0) * _BRIGHTEST / 255)
    canvas = Image.fromarray(dark.astype(np.uint8))
    return canvas.resize((full, full), Image.Resampling.BILINEAR)


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if not name:
        return ImageFont.load_default(size)
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            f"the font {name!r} comes with matplotlib: pip install 'foveate[demo]'"
        ) from error
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def _draw_sign(pen: ImageDraw.ImageDraw, sign: Sign, scale: float) -> None:
    (x0, y0), (x1, y1) = sign.centres[0], sign.centres[-1]
    plate = (x0 - 5.75, y0 - 7.0, x1 + 5.75, y1 + 7.0)
    pen.rounded_rectangle([v * scale for v in plate], radius=2 * scale, fill=(225, 220, 200))
    font, stroke = _font(sign.font, round(sign.size * scale)), sign.stroke * scale
    for character, (x, y) in zip(sign.text, sign.centres, strict=True):
        # Centred by its ink, as fonts differ in the position of the baseline.
        left, top, right, bottom = pen.textbbox((0, 0), character, font=font)
        at = x * scale - (left + right) / 2, y * scale - (top + bottom) / 2
        pen.text(at, character, fill=(20, 20, 25), font=font, stroke_width=stroke)


def _polygon(item: Item, scale: float) -> list[tuple[float, float]]:
    x, y, r = item.x * scale, item.y * scale, item.radius * scale

    def around(angles: Sequence[float], radii: Sequence[float]) -> list[tuple[float, float]]:
        return [
            (x + q * r * math.sin(a), y - q * r * math.cos(a))
            for a, q in zip(angles, radii, strict=True)
        ]

    tau = math.tau
    if item.outline:
        return around([k * tau / len(item.outline) for k in range(len(item.outline))], item.outline)
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
