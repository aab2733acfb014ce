"""Average pooling, the baseline that merges neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress import ops
from compress.methods.base import Method
from compress.ops.windows import shares
from compress.tokens import Grid, Reduction, VisualTokens


@dataclass(frozen=True)
class Pool(Method):
    """Mean over rectangular blocks, near square and as equal as whole numbers allow.

    The rows of all frames are cut into strips, each strip into blocks, `keep` in all. A grid that
    divides evenly gives the usual pooling (24 x 24 to 64: blocks of 3 x 3). A block's anchor is
    its middle token. Strips cross frames only where there are fewer strips than frames.
    """

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        assign, anchor = self.blocks(tokens.grid, keep)
        b, device = len(tokens.features), tokens.features.device
        anchor, assign = (ops.on_device(x, device).expand(b, -1) for x in (anchor, assign))
        return ops.merge(tokens.features, anchor, assign)

    @staticmethod
    def blocks(grid: Grid, keep: int) -> tuple[Tensor, Tensor]:
        """The block of each token (N,), and the middle token of each block (keep,), int64."""
        t, h, w = grid
        lines = t * h
        strips = round((keep * lines / w) ** 0.5)
        if t > 1:
            strips = t * max(1, round(strips / t))
        strips = min(max(strips, -(-keep // w)), keep, lines)
        assign = torch.empty(lines, w, dtype=torch.int64)
        anchors: list[int] = []
        line = 0
        for height, blocks in zip(shares(lines, strips), shares(keep, strips), strict=True):
            column = 0
            for width in shares(w, blocks):
                assign[line : line + height, column : column + width] = len(anchors)
                anchors.append((line + (height - 1) // 2) * w + column + (width - 1) // 2)
                column += width
            line += height
        return assign.flatten(), torch.tensor(anchors)
