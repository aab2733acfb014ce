"""HoloV: every stretch of the image gets tokens in proportion to what it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional

from compress import ops
from compress.methods.base import Method
from compress.tokens import Reduction, VisualTokens


@dataclass(frozen=True)
class HoloV(Method):
    """HoloV (code obananas/HoloV): quotas by chunk, then the most salient of each.

    The raster sequence is cut into `chunks` stretches. The content of a token is 1000 times its
    saliency plus `diversity` times the variance of its cosine similarities within its chunk,
    rescaled to 0..1 over the input; the quota of a chunk is its share of the mean contents. Whole
    parts of quotas are dealt first, then the largest remainders, each to the most salient tokens of
    the chunk. A video is reduced frame by frame.

    Departures from the released code: it rescales the variance chunk by chunk, to the mean of
    1000 times the saliency there, which scales the contents of all chunks alike: its weight of 0.09
    and a weight of 0 select the same tokens. It gives what is left of the count to
    the chunks of highest content, and pads a short result with zeros.
    """

    features_from: ClassVar[str] = "pre_projector"
    requires: ClassVar[frozenset[str]] = frozenset({"saliency"})
    per_frame: ClassVar[bool] = True

    chunks: int = 16
    diversity: float = 0.09

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunks < 1:
            raise ValueError(f"HoloV: chunks is {self.chunks}; it must be at least 1")
        if self.diversity < 0:
            raise ValueError(f"HoloV: diversity is {self.diversity}; it must not be negative")

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        saliency, n = ops.wide(tokens.need("saliency")), tokens.count
        width = -(-n // min(self.chunks, n))
        short = -n % width  # the last chunk is padded

        def cut(x: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
            return functional.pad(x, (0, short), value=fill).unflatten(-1, (-1, width))

        real = cut(torch.ones_like(saliency))
        x = cut(ops.unit(ops.wide(tokens.features)).mT).permute(0, 2, 3, 1)
        alike = x @ x.mT
        count = real.sum(2)[..., None]
        mean = (alike * real[:, :, None]).sum(3) / count
        spread = ((alike - mean[..., None]).square() * real[:, :, None]).sum(3) / count
        spread = ops.minmax(spread.flatten(1)[:, :n])
        content = cut(1000 * saliency + self.diversity * spread).sum(2) / count[..., 0]
        quota = keep * content / content.sum(1, keepdim=True)
        index = ops.by_quota(cut(saliency, -torch.inf), quota, keep, every=False)
        return ops.prune(tokens.features, index)
