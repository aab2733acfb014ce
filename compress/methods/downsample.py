"""Down-sampling of the input image, the baseline that looks less closely."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from compress.budget import Allocation, Plan
from compress.methods.pool import Pool
from compress.tokens import Grid


@dataclass(frozen=True)
class Downsample(Pool):
    """The vision encoder is given a smaller image, of s x s patches in place of a larger square.

    The image is resampled (bicubic, antialiased), and the encoder interpolates its position
    embeddings. Each token stands for its block of the dense grid, at the middle token of the block.
    Counts are squares. For encoders of one resolution (LLaVA); a model of any resolution gets a
    smaller image through the settings of its processor. On bare features this is `Pool`.
    """

    features_from: ClassVar[str] = "pre_projector"
    resizes_input: ClassVar[bool] = True

    def plans(self, dense: int, depth: int) -> Iterator[Plan]:
        yield lambda count: Allocation(dense, depth, math.isqrt(count) ** 2)

    def input_side(self, grid: Grid, keep: int) -> int:
        if grid[0] != 1 or grid[1] != grid[2]:
            raise ValueError(f"Downsample resizes images of one square grid, got the grid {grid}")
        return math.isqrt(keep)

    def input_blocks(self, grid: Grid, keep: int) -> Tensor:
        return self.blocks(grid, keep)[0]
