"""Draws collages."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from vlm.embedded.collage.names import COLOURS
from vlm.embedded.collage.scene import IMAGE_SIZE, Scene, Sign, Thing

CIRCLE = 37  # radius in pixels


@lru_cache(maxsize=1024)
def _opened(path: Path, mode: str) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert(mode)


def draw(scene: Scene) -> Image.Image:
    """The picture of a scene, RGB, `IMAGE_SIZE` pixels on a side."""
    behind = _opened(scene.background, "RGB")
    left, top, share = scene.crop
    side = share * min(behind.size)
    x, y = left * (behind.width - side), top * (behind.height - side)
    size = IMAGE_SIZE, IMAGE_SIZE
    picture = behind.resize(size, Image.Resampling.BILINEAR, (x, y, x + side, y + side))
    for thing in scene.things:
        if thing.circle is not None:
            pen = ImageDraw.Draw(picture)
            box = [thing.x - CIRCLE, thing.y - CIRCLE, thing.x + CIRCLE, thing.y + CIRCLE]
            pen.ellipse(box, fill=COLOURS[thing.circle])
    for thing in scene.things:
        _paste(picture, thing)
    if scene.sign is not None:
        _write(picture, scene.sign)
    return picture


def _paste(picture: Image.Image, thing: Thing) -> None:
    look = _opened(thing.look, "RGBA")
    size = look_size(thing)
    look = look.resize(size, Image.Resampling.BILINEAR)
    if thing.mirrored:
        look = ImageOps.mirror(look)
    picture.paste(look, (round(thing.x - size[0] / 2), round(thing.y - size[1] / 2)), look)


def _write(picture: Image.Image, sign: Sign) -> None:
    pen = ImageDraw.Draw(picture)
    left, top, right, bottom = sign.box
    ground = COLOURS[sign.colour]
    dark = sum(ground) < 330
    ink = (255, 255, 255) if dark else (0, 0, 0)
    pen.rounded_rectangle(sign.box, 6, fill=ground, outline=ink, width=2)
    middle = (left + right) / 2, (top + bottom) / 2
    pen.text(middle, sign.word, ink, fitted_font(sign), anchor="mm")


def fitted_font(sign: Sign) -> ImageFont.FreeTypeFont:
    """The font in the largest even step of size with which the word fits its sign."""
    left, top, right, bottom = sign.box
    for size in range(int(bottom - top) - 6, 8, -2):
        font = _font(sign.font, size)
        if font.getlength(sign.word) <= right - left - 10:
            break
    return font


def letter_edges(sign: Sign) -> list[float]:
    """The x coordinates, in pixels, between which a sign's letters lie: one more than letters."""
    font = fitted_font(sign)
    widths = [font.getlength(sign.word[:end]) for end in range(len(sign.word) + 1)]
    left = (sign.box[0] + sign.box[2] - widths[-1]) / 2
    return [left + width for width in widths]


def look_size(thing: Thing) -> tuple[int, int]:
    """Width and height in pixels at which a thing is drawn."""
    look = _opened(thing.look, "RGBA")
    scale = thing.size / max(look.size)
    return max(1, round(look.width * scale)), max(1, round(look.height * scale))


@lru_cache(maxsize=512)
def _font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size)
