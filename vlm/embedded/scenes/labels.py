"""Labels of each grid cell of a picture, for the training of the vision encoder."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from vlm.embedded.scenes.drawing import draw_item
from vlm.embedded.scenes.scene import (
    CHARACTERS,
    COLOUR_NAMES,
    COLOURS,
    IMAGE_SIZE,
    SHAPES,
    Clip,
    Scene,
)

# label -> number of classes. kind: 0 blank, 1 item, 2 sign, 3 dot. colour, shape, character: an
# index + 1 (0: none). row, column: the slot of what the cell shows (0: blank). place: 1 or 2 where
# a character has its centre (0: none). centre: 1 where an item has its centre.
FIELDS = {
    "kind": 4,
    "colour": len(COLOURS) + 1,
    "shape": len(SHAPES) + 1,
    "row": 5,
    "column": 5,
    "character": len(CHARACTERS) + 1,
    "place": 3,
    "centre": 2,
}


def cell_labels(scene: Scene, grid: int = 12, threshold: float = 0.12) -> np.ndarray:
    """(fields, grid * grid) int64, in the order of `FIELDS`, grid cells in raster order.

    A grid cell shows an item that covers at least `threshold` of its area.
    """
    cell = IMAGE_SIZE // grid
    out = {name: np.zeros((grid, grid), dtype=np.int64) for name in FIELDS}
    for item in scene.items:
        mask = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE))
        draw_item(ImageDraw.Draw(mask), item, 255, 1.0)
        covered = np.asarray(mask, dtype=np.float32).reshape(grid, cell, grid, cell).mean((1, 3))
        shown = covered >= 255 * threshold
        out["kind"][shown] = 1
        out["colour"][shown] = COLOUR_NAMES.index(item.colour) + 1
        out["shape"][shown] = SHAPES.index(item.shape) + 1
        out["row"][shown], out["column"][shown] = item.row, item.column
        out["centre"][int(item.y // cell), int(item.x // cell)] = 1
    if (dot := scene.dot) is not None:
        at = int(dot.y // cell), int(dot.x // cell)
        out["kind"][at], out["colour"][at] = 3, COLOUR_NAMES.index(dot.colour) + 1
        out["row"][at], out["column"][at] = dot.row, dot.column
    if (sign := scene.sign) is not None:
        (x0, y0), (x1, _) = sign.centres[0], sign.centres[-1]
        plate = np.s_[
            int((y0 - 4) // cell) : int((y0 + 4) // cell) + 1, int(x0 // cell) : int(x1 // cell) + 1
        ]
        out["kind"][plate], out["row"][plate], out["column"][plate] = 2, sign.row, sign.column
        for place, (character, (x, y)) in enumerate(zip(sign.text, sign.centres, strict=True), 1):
            at = int(y // cell), int(x // cell)
            out["character"][at], out["place"][at] = CHARACTERS.index(character) + 1, place
    return np.stack(list(out.values())).reshape(len(FIELDS), -1)


def clip_labels(clip: Clip, grid: int = 12) -> np.ndarray:
    """(fields, frames * grid * grid) int64, frame after frame."""
    return np.concatenate([cell_labels(frame, grid) for frame in clip.frames], axis=1)
