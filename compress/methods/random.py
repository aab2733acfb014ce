"""Random dropping, the baseline that every method must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from compress import ops
from compress.methods.base import Method
from compress.tokens import Reduction, VisualTokens


@dataclass(frozen=True)
class Random(Method):
    """Keep tokens drawn uniformly without replacement, each input on its own.

    Without a generator the draw is seeded with `seed`, and all inputs of a call share it: two calls
    agree, and an input gets in a batch what it gets alone.
    """

    seed: int = 0

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        b, n, _ = tokens.features.shape
        if generator is None:
            draw = torch.rand(1, n, generator=torch.Generator().manual_seed(self.seed))
            draw = draw.expand(b, n)
        else:
            draw = torch.rand(b, n, generator=generator, device=generator.device)
        index = ops.top(ops.on_device(draw, tokens.features.device), keep)
        return ops.prune(tokens.features, index)
