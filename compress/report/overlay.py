"""Draws the kept, merged and dropped tokens of a reduction over its picture."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from compress.tokens import Grid, Reduction

PANEL = 336  # longer side of one panel, pixels
_HEAD, _GAP = 40, 10
_PAPER, _INK, _SOFT = (250, 250, 248), (30, 30, 34), (110, 110, 118)


def overlay(
    picture: Any, steps: Sequence[tuple[str, Grid, Reduction]], title: str = "input"
) -> Image.Image:
    """One row of panels a frame: the picture, then each step.

    Kept tokens show the picture. Merged tokens are tinted and outlined in the colour of their
    group, with a dot on the anchor. Dropped tokens are dim.

    Args:
        picture: a PIL image, or for a video one image for each time step of the grid.
        steps: name, grid (t, h, w) and reduction (B = 1) of each step.
        title: the title of the first panel.

    Raises:
        ValueError: the number of pictures differs from that of the time steps.
    """
    frames = list(picture) if isinstance(picture, (list, tuple)) else [picture]
    length = steps[0][1][0] if steps else len(frames)
    if len(frames) != length:
        raise ValueError(f"{len(frames)} pictures for a grid of {length} time steps")
    rows = []
    for t, frame in enumerate(frames):
        shown = _fit(frame)
        panels = [_captioned(shown, title if len(frames) == 1 else f"{title} {t + 1}", "")]
        panels += [panel(frame, *part, step=t) for part in steps]
        rows.append(sheet(panels, columns=len(panels)))
    return stack(rows)


def panel(
    picture: Image.Image, name: str, grid: Grid, reduction: Reduction, step: int = 0
) -> Image.Image:
    """One step over the picture of time step `step` of the grid, with its name and counts."""
    assign, anchor = reduction.assign[0].cpu().numpy(), reduction.anchor[0].cpu().numpy()
    size = grid[1] * grid[2]
    cut = slice(step * size, (step + 1) * size)
    here = assign[cut].reshape(grid[1], grid[2])
    marks = np.zeros(len(assign), dtype=bool)
    marks[anchor] = True
    groups = np.bincount(assign[assign >= 0], minlength=len(anchor))
    text = _count(groups, len(assign)) if grid[0] == 1 else ""
    drawn = _marked(_fit(picture), here, groups, marks[cut].reshape(here.shape))
    return _captioned(drawn, name, text)


def stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Stack pictures vertically, each at its own height."""
    size = max(p.width for p in pictures), sum(p.height for p in pictures)
    out, top = Image.new("RGB", size, _PAPER), 0
    for picture in pictures:
        out.paste(picture, (0, top))
        top += picture.height
    return out


def sheet(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Arrange pictures in rows of `columns`, each in a field of the size of the largest."""
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    rows = -(-len(pictures) // columns)
    size = (columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP)
    out = Image.new("RGB", size, _PAPER)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        out.paste(picture, (_GAP + column * (width + _GAP), _GAP + row * (height + _GAP)))
    return out


def legend(width: int, text: str) -> Image.Image:
    """A legend of the panels under a line of `text`."""
    out = Image.new("RGB", (width, 58), _PAPER)
    pen, small = ImageDraw.Draw(out), ImageFont.load_default(14)
    pen.text((4, 4), text, fill=_INK, font=ImageFont.load_default(17))
    x = 4
    for fill, edge, words in (
        ((205, 180, 140), None, "kept as it is"),
        ((205, 180, 140), (0, 150, 90), "merged: one colour a group, dot = its place"),
        ((52, 48, 44), None, "dropped"),
    ):
        pen.rectangle((x, 34, x + 16, 50), fill=fill, outline=edge, width=2)
        pen.text((x + 22, 34), words, fill=_SOFT, font=small)
        x += 40 + round(pen.textlength(words, font=small))
    return out


def _fit(picture: Image.Image) -> Image.Image:
    scale = PANEL / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _captioned(picture: Image.Image, name: str, text: str) -> Image.Image:
    out = Image.new("RGB", (picture.width, picture.height + _HEAD), _PAPER)
    pen = ImageDraw.Draw(out)
    pen.text((0, 2), name, fill=_INK, font=ImageFont.load_default(16))
    pen.text((0, 21), text, fill=_SOFT, font=ImageFont.load_default(13))
    out.paste(picture, (0, _HEAD))
    return out


def _count(groups: np.ndarray, count: int) -> str:
    merged = int((groups > 1).sum())
    if not merged:
        return f"{len(groups)} of {count} kept"
    within = int(groups[groups > 1].sum())
    return f"{len(groups)} of {count}: {len(groups) - merged} kept, {within} merged into {merged}"


def _marked(
    picture: Image.Image, assign: np.ndarray, groups: np.ndarray, anchors: np.ndarray
) -> Image.Image:
    """Dim, tint and outline the tokens of one frame. assign (h, w): row of each token or -1."""
    pixels = np.asarray(picture, dtype=np.float32)
    rows, columns = assign.shape
    row_of = np.minimum(np.arange(picture.height) * rows // picture.height, rows - 1)
    column_of = np.minimum(np.arange(picture.width) * columns // picture.width, columns - 1)
    each = assign[row_of][:, column_of]
    grey = pixels.mean(2, keepdims=True)
    pixels = np.where((each < 0)[..., None], 0.22 * (0.7 * grey + 0.3 * pixels), pixels)
    merged = np.flatnonzero(groups > 1)
    colours = {int(row): _colour(number, len(merged)) for number, row in enumerate(merged)}
    for row, colour in colours.items():
        inside = (each == row)[..., None]
        pixels = np.where(inside, 0.72 * pixels + 0.28 * np.array(colour), pixels)
    out = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(out)
    for r in range(rows):
        for c in range(columns):
            row = int(assign[r, c])
            if row not in colours:
                continue
            x0, x1 = (round(k * picture.width / columns) for k in (c, c + 1))
            y0, y1 = (round(k * picture.height / rows) for k in (r, r + 1))
            for dr, dc, line in (
                (-1, 0, (x0, y0, x1, y0)),
                (1, 0, (x0, y1 - 2, x1, y1 - 2)),
                (0, -1, (x0, y0, x0, y1)),
                (0, 1, (x1 - 2, y0, x1 - 2, y1)),
            ):
                near = (r + dr, c + dc)
                edge = not (0 <= near[0] < rows and 0 <= near[1] < columns)
                if edge or assign[near] != row:
                    pen.line(line, fill=colours[row], width=3)
            if anchors[r, c]:
                x, y, size = (x0 + x1) / 2, (y0 + y1) / 2, max(2.0, (x1 - x0) / 9)
                box = (x - size, y - size, x + size, y + size)
                pen.ellipse(box, fill=colours[row], outline=(255, 255, 255))
    return out


def _colour(number: int, count: int) -> tuple[int, int, int]:
    # The golden ratio gives neighbouring numbers different hues, for any count.
    hue = (number * 0.618034) % 1.0
    value = 0.95 if number % 2 else 0.75
    return tuple(round(255 * v) for v in colorsys.hsv_to_rgb(hue, 0.85, value))  # type: ignore[return-value]
