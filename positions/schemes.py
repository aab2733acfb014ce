"""How a visual input's cells get their home positions.

A scheme is a small frozen dataclass with one method. It writes positions of the input's cells only;
`plan` places text and moves the cursor, by one rule for every scheme: the next text token stands at
ceil(largest home of the input, over all axes) + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from positions.layout import Visual

Homes = npt.NDArray[np.float64]


class Scheme(Protocol):
    """What `plan` asks of a scheme."""

    def homes(self, item: Visual, start: float, generator: torch.Generator | None) -> Homes:
        """Home positions of `item`'s cells in raster order.

        start: the position that a text token would take here.
        Returns (cells, 3) float64 (t, h, w), or (cells, 1) where the three axes are equal.
        """
        ...


@dataclass(frozen=True)
class Sequential:
    """Every cell one step after the cell before it, in raster order, as if it were text.

    The positions of 1-D models (LLaVA, LLaVA-OneVision, InternVL); "original" in MouSi
    (arXiv 2401.17221, section 3.3).
    """

    def homes(self, item: Visual, start: float, generator: torch.Generator | None) -> Homes:
        """(cells, 1): start, start + 1, ..."""
        return start + np.arange(item.cells, dtype=np.float64)[:, None]
