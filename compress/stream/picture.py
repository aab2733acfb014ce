"""The memory of a stream as a picture: its remembered steps, with the tokens that are held."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from compress import ops
from compress.report.overlay import panel, sheet
from compress.stream.memory import Rows
from compress.tokens import Reduction

COLUMNS = 4


def draw_memory(
    rows: Rows, pictures: Mapping[int, np.ndarray], grid: tuple[int, int], limit: int
) -> Image.Image:
    """A panel for each remembered step, oldest first; of more than `limit`, evenly spaced ones and
    the last. Tokens that were evicted are dim.

    pictures: a frame (H, W, 3) uint8 for each step. grid: (h, w) of a step's tokens.
    """
    visual = rows.cell >= 0
    steps = rows.step[visual].unique().tolist()
    if len(steps) > limit:
        index = np.linspace(0, len(steps) - 1, limit).round().astype(int)
        steps = [steps[number] for number in index.tolist()]
    panels = []
    for step in steps:
        cells = rows.cell[visual & (rows.step == step)]
        reduction = _kept(cells, grid[0] * grid[1])
        picture = Image.fromarray(pictures[step])
        name = f"step {step}: {len(cells)} of {grid[0] * grid[1]}"
        panels.append(panel(picture, name, (1, *grid), reduction))
    return sheet(panels, min(COLUMNS, len(panels)))


def _kept(cells: Tensor, count: int) -> Reduction:
    """The reduction that keeps some of `count` tokens and drops the others."""
    return ops.prune(torch.zeros(1, count, 1), cells[None])
