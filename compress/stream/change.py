"""How much of a step was not there in the one before (FluxMem, arXiv 2603.02096)."""

from __future__ import annotations

import torch
from torch import Tensor

from compress import ops

NEW = 2.0  # of tokens that nothing was before


def change_between(before: Tensor, after: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """1 - the largest cosine of each token to the 3 x 3 neighbourhood of its place in the other
    step, float32: (N,) of `before` and (N,) of `after`.

    before, after: (N, D) features in a grid (h, w).
    """
    cosine = ops.cosine(before[None], after[None])[0].float()
    height, width = grid
    axes = torch.arange(height, device=cosine.device), torch.arange(width, device=cosine.device)
    place = torch.cartesian_prod(*axes)
    near = ((place[:, None] - place[None]).abs() <= 1).all(2)
    cosine = cosine.masked_fill(~near, -1.0)
    return 1 - cosine.amax(1), 1 - cosine.amax(0)
