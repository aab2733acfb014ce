"""Down-sampling of the input image, the baseline that looks less closely."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from compress.budget import Allocation, Plan
from compress.methods.pool import Pool


@dataclass(frozen=True)
class Downsample(Pool):
    """The vision tower sees a smaller picture: s x s patches instead of a square grid of N.

    The picture is resampled (bicubic, antialiased) and the tower interpolates its position
    embeddings. Each token stands for its block of the dense grid, at the block's middle cell.
    Counts are squares. For towers of one resolution (LLaVA); a model of any resolution gets a
    smaller picture by its processor's settings. On bare features this is `Pool`.
    """

    resizes_input: ClassVar[bool] = True
    features_from: ClassVar[str] = "pre_projector"

    def plans(self, dense: int, depth: int) -> Iterator[Plan]:
        yield lambda count: Allocation(dense, depth, math.isqrt(count) ** 2)
