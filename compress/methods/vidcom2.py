"""VidCom2: the tokens least like their frame and their video."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress import ops
from compress.methods.base import Method
from compress.tokens import Reduction, VisualTokens


@dataclass(frozen=True)
class VidCom2(Method):
    """VidCom2 (EMNLP 2025, section 3; code xuyang-liu16/VidCom2), for video.

    On the `channels` share of channels with the lowest variance, likeness to a mean is a sum of
    Gaussians of widths 2^-3 .. 2^1; a token's score is its likeness to the video's mean plus that
    to its frame's mean, and the lowest stay. A frame's share of tokens is scaled by how little it
    resembles the video, softmax at `temperature`. An image is one frame.

    Departure: the count over all frames is exact (the released code rounds frame by frame).
    """

    channels: float = 0.5
    temperature: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.channels <= 1:
            raise ValueError(f"VidCom2: channels is {self.channels}; it must be in (0, 1]")
        if not self.temperature > 0:
            raise ValueError(f"VidCom2: temperature is {self.temperature}; it must be above 0")

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        with torch.no_grad():
            t, h, w = tokens.grid
            x = ops.wide(tokens.features)
            quiet = ops.top(-x.var(1, correction=0), max(1, int(x.shape[2] * self.channels)))
            x = ops.unit(x.gather(2, quiet[:, None].expand(-1, tokens.count, -1)))
            frames = x.unflatten(1, (t, h * w))
            video = _likeness(frames, x.mean(1)[:, None, None])
            score = video + _likeness(frames, frames.mean(2, keepdim=True))
            rare = (-video.mean(2) / self.temperature).softmax(1)
            scale = 1 + rare - rare.mean(1, keepdim=True)
            index = ops.by_quota(-score, keep / t * scale, keep, every=False)
        return ops.prune(tokens.features, index)


def _likeness(x: Tensor, centre: Tensor) -> Tensor:
    """Sum of Gaussians of the distance of x (..., D) to its centre -> (...)."""
    square = (x - centre).square().sum(-1)
    widths = 2.0 ** torch.arange(-3, 2, device=x.device)
    return (-square[..., None] / (2 * widths)).exp().sum(-1)
