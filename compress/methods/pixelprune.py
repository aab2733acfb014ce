"""PixelPrune: patches that their neighbours foretell do not enter the vision encoder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress import ops
from compress.methods.base import Method
from compress.ops.pixels import residuals
from compress.tokens import Grid, Reduction, VisualTokens


@dataclass(frozen=True)
class PixelPrune(Method):
    """PixelPrune (arXiv 2604.00886, section 3), for encoders of packed patches (Qwen-VL, GLM-V).

    A cell, which is the patches of one token, is left out if no pixel differs by more than
    `threshold` from what the cells on its left and above foretell (`ops.pixels.residuals`). It
    costs nothing in the vision encoder, and the question does not matter. Values are those that the
    processor gives, in standard deviations of a channel: one of 255 levels is about 0.015. Rotary
    positions, windows and the tokens' positions in the language model stay those of the dense
    picture.

    The budget is the most that stays, the cells that are foretold worst: with `budget=1.0` the
    threshold alone decides, and a picture without repetition is encoded as ever. Frames of a video
    are pictures of their own. On bare features, which count as pixels, the budget is kept exactly.
    """

    prunes_patches: ClassVar[bool] = True

    threshold: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold < 0:
            raise ValueError(f"PixelPrune: threshold is {self.threshold}; it must be at least 0")

    def kept_cells(self, cells: Tensor, grid: Grid, most: int) -> Tensor:
        """(N,) bool: the cells of one input that enter the vision encoder, `most` at most.

        cells: (N, C), the pixels of each.
        """
        far = residuals(cells[None], grid, self.threshold)
        worst = torch.zeros_like(far, dtype=torch.bool).scatter(1, ops.top(far, most), True)
        return (worst & (far > self.threshold))[0]

    def counts(self, pixels: Tensor, grids: Tensor, merge: int) -> list[int]:
        """Tokens that stay of each picture with `budget=1.0`, from what the processor gives alone.

        pixels: (R, C), rows of `pixel_values`. grids: (n, 3) int64, `image_grid_thw`. merge:
        patches a side of a token (`spatial_merge_size`).
        """
        cells = pixels.unflatten(0, (-1, merge**2)).flatten(1)
        sizes = [(t, h // merge, w // merge) for t, h, w in grids.tolist()]
        parts = cells.split([math.prod(size) for size in sizes])
        kept = [self.kept_cells(x, size, len(x)) for x, size in zip(parts, sizes, strict=True)]
        return [int(one.sum()) for one in kept]

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        far = residuals(tokens.features, tokens.grid, self.threshold)
        return ops.prune(tokens.features, ops.top(far, keep), tokens.size)
