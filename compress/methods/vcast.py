"""V-CAST: more tokens where a video turns."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from compress import ops
from compress.methods.base import Method, choose
from compress.tokens import Reduction, VisualTokens


@dataclass(frozen=True)
class VCast(Method):
    """V-CAST (arXiv 2603.27650, section 3; code xinyouu/V-CAST), for video.

    The share of a frame grows with the curvature of the path of frame means, 1 - cos of the steps
    into and out of it (ends: 1), softmax at `temperature`; each frame has at least one token. In a
    frame the tokens that differ most from its mean and have the largest norm stay. Prunes only: the
    authors hold that merging misplaces tokens under M-RoPE. An image is one frame.

    leftover: tokens left after the whole parts of the shares go to the largest remainders, one each
        ("spread"), or all to the frame of largest remainder, then to the next once it is full
        ("released", what the released code does).
    """

    temperature: float = 0.7
    leftover: str = "spread"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose(self, leftover=("spread", "released"))
        if not self.temperature > 0:
            raise ValueError(f"VCast: temperature is {self.temperature}; it must be above 0")

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
            share = (bend / self.temperature).softmax(1)
            sure = 1 if keep >= t else 0
            unlike = 1 - (ops.unit(x) @ centre[..., None])[..., 0]
            length = ops.minmax(x.norm(dim=3).flatten(0, 1)).unflatten(0, (-1, t))
            quota = share * (keep - sure * t)
            if self.leftover == "released":
                quota = _whole(quota, keep - sure * t, h * w - sure)
            index = ops.by_quota(unlike + length, sure + quota, keep)
        return ops.prune(tokens.features, index)


def _whole(quota: torch.Tensor, total: int, most: int) -> torch.Tensor:
    """(B, T) whole quotas, each at most `most`, that sum to `total`; see `leftover`."""
    whole = quota.floor().clamp(max=most)
    remainder = (quota - quota.floor()).masked_fill(whole == most, -1.0)
    order = ops.rank(remainder)
    room = (most - whole).gather(1, order)
    left = total - whole.sum(1, keepdim=True)
    extra = torch.minimum((left - room.cumsum(1) + room).clamp(min=0), room)
    return whole.scatter_add(1, order, extra)
