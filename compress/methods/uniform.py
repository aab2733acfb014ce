"""Uniform stride, the baseline that covers the input evenly."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from compress import ops
from compress.methods.base import Method
from compress.tokens import Reduction, VisualTokens


@dataclass(frozen=True)
class Uniform(Method):
    """Keep tokens evenly spaced in raster order: the middles of `keep` equal parts."""

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        index = ops.spread(tokens.count, keep, tokens.features.device)
        return ops.prune(tokens.features, index.expand(len(tokens.features), keep))
