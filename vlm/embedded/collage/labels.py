"""What each patch of a collage shows, for training that names patches."""

from __future__ import annotations

import string

import numpy as np

from vlm.embedded.collage.drawing import CIRCLE, letter_edges, look_size
from vlm.embedded.collage.names import COLOURS, COLUMNS, ROWS, THINGS
from vlm.embedded.collage.scene import IMAGE_SIZE, Scene

# The words of each field, by label. -1 is no label.
FIELDS: dict[str, tuple[str, ...]] = {
    "shows": (*THINGS, *string.ascii_uppercase, "background"),
    "colour": tuple(COLOURS),
    "row": ROWS,
    "column": COLUMNS,
}
BACKGROUND = len(FIELDS["shows"]) - 1


def patch_labels(scene: Scene, side: int) -> np.ndarray:
    """Labels of side x side patches, (patches, fields) int64, in raster order and that of `FIELDS`.

    A patch shows what covers its centre: the ellipse in a thing's box, or a letter of the sign.
    """
    at = (np.arange(side) + 0.5) * IMAGE_SIZE / side
    y, x = (a.ravel() for a in np.meshgrid(at, at, indexing="ij"))
    labels = np.full((side * side, len(FIELDS)), -1)
    labels[:, 0] = BACKGROUND
    labels[:, 2] = y * len(ROWS) // IMAGE_SIZE
    labels[:, 3] = x * len(COLUMNS) // IMAGE_SIZE
    for thing in scene.things:
        if thing.circle is not None:
            inside = (x - thing.x) ** 2 + (y - thing.y) ** 2 < CIRCLE**2
            labels[inside, 1] = FIELDS["colour"].index(thing.circle)
    for thing in scene.things:
        width, height = look_size(thing)
        inside = ((x - thing.x) / width) ** 2 + ((y - thing.y) / height) ** 2 < 0.25
        labels[inside, 0] = FIELDS["shows"].index(thing.name)
    if (sign := scene.sign) is not None:
        left, top, right, bottom = sign.box
        inside = (x > left) & (x < right) & (y > top) & (y < bottom)
        labels[inside, 1] = FIELDS["colour"].index(sign.colour)
        edges = letter_edges(sign)
        for letter, start, end in zip(sign.word, edges[:-1], edges[1:], strict=True):
            labels[inside & (x >= start) & (x < end), 0] = FIELDS["shows"].index(letter)
    return labels
