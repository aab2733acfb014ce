"""How far the cells of a picture are from what their neighbours foretell."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compress.ops.similarity import wide
from compress.tokens import Grid


def residuals(cells: Tensor, grid: Grid, threshold: float = 0.0) -> Tensor:
    """(B, N) float32 or better: the largest difference of a channel of each cell from its
    prediction (PixelPrune, arXiv 2604.00886); infinite for the first cell of each frame.

    A cell is predicted from the one above if that on the left is as the one above left, and the one
    above is not; else from the one on the left. In the first row that on the left foretells it, in
    the first column the one above. Cells are alike if no channel differs by more than `threshold`.
    A cell that is within `threshold` counts as what was predicted for those after it.

    cells: (B, N, C) in raster order. grid: (T, H, W); each frame is a picture of its own.
    """
    t, h, w = grid
    x = wide(cells).reshape(-1, h, w, cells.shape[2])
    found = x.new_full(x.shape[:3], math.inf)
    if threshold == 0:  # what is dropped is what was predicted: nothing waits for anything
        found[:, 0, 1:] = _far(x[:, 0, 1:], x[:, 0, :-1])
        found[:, 1:, 0] = _far(x[:, 1:, 0], x[:, :-1, 0])
        around = (x[:, 1:, :-1], x[:, :-1, 1:], x[:, :-1, :-1])
        found[:, 1:, 1:] = _far(x[:, 1:, 1:], _predicted(*around, 0.0))
        return found.reshape(-1, t * h * w)
    known = x.clone()
    for diagonal in range(1, h + w - 1):  # cells of a diagonal do not depend on one another
        row = torch.arange(max(0, diagonal - w + 1), min(h - 1, diagonal) + 1, device=x.device)
        column = diagonal - row
        left, above = (column - 1).clamp(min=0), (row - 1).clamp(min=0)
        a, b = known[:, row, left], known[:, above, column]
        guess = _predicted(a, b, known[:, above, left], threshold)
        guess = torch.where((row == 0)[:, None], a, torch.where((column == 0)[:, None], b, guess))
        far = _far(x[:, row, column], guess)
        found[:, row, column] = far
        own = torch.where((far <= threshold)[..., None], guess, x[:, row, column])
        known[:, row, column] = own
    return found.reshape(-1, t * h * w)


def _predicted(left: Tensor, above: Tensor, corner: Tensor, threshold: float) -> Tensor:
    same = (_far(corner, left) <= threshold) & (_far(corner, above) > threshold)
    return torch.where(same[..., None], above, left)


def _far(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).abs().amax(-1)
