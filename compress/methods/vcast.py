"""V-CAST: more tokens where a video turns."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from compress import ops
from compress.methods.base import Method
from compress.tokens import Reduction, VisualTokens


@dataclass(frozen=True)
class VCast(Method):
    """V-CAST (arXiv 2603.27650, section 3; code xinyouu/V-CAST), for video.

    A frame's share grows with the curvature of the path of frame means, 1 - cos of the steps into
    and out of it (ends: 1), softmax at `heat`; one token a frame is sure. In a frame the cells
    that differ most from its mean and have the largest norm stay, at their own positions. Prunes
    only: the authors hold that merging misplaces tokens under M-RoPE. An image is one frame.
    """

    heat: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.heat > 0:
            raise ValueError(f"VCast: heat is {self.heat}; it must be above 0")

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        with torch.no_grad():
            t, h, w = tokens.grid
            x = ops.wide(tokens.features).unflatten(1, (t, h * w))
            centre = ops.unit(x.mean(2))
            step = ops.unit(centre[:, 1:] - centre[:, :-1])
            bend = torch.ones_like(centre[..., 0])
            bend[:, 1:-1] = 1 - (step[:, 1:] * step[:, :-1]).sum(2)
            share = (bend / self.heat).softmax(1)
            sure = 1 if keep >= t else 0
            unlike = 1 - (ops.unit(x) @ centre[..., None])[..., 0]
            length = ops.minmax(x.norm(dim=3).flatten(0, 1)).unflatten(0, (-1, t))
            index = ops.by_quota(unlike + length, sure + share * (keep - sure * t), keep)
        return ops.prune(tokens.features, index)
