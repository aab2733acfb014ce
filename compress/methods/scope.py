"""SCOPE: salient tokens that cover what is not covered yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress import ops
from compress.methods.base import Method
from compress.ops import greedy
from compress.tokens import Reduction, VisualTokens


@dataclass(frozen=True)
class Scope(Method):
    """SCOPE (NeurIPS 2025, arXiv 2510.24214, section 3; code kinredon/SCOPE).

    Each kept token has the largest saliency ** `power` times coverage gain, which is the sum over
    all tokens j of max(0, cos(i, j) - the best cosine of j to a kept token so far).

    Departure from the released code: a negative saliency, which attention never is, counts as 0.
    """

    features_from: ClassVar[str] = "pre_projector"
    requires: ClassVar[frozenset[str]] = frozenset({"saliency"})
    pairwise: ClassVar[bool] = True

    power: float = 1.0

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        indices = []
        weight = ops.wide(tokens.need("saliency")).clamp(min=0) ** self.power
        for part in ops.batches(*tokens.features.shape[:2]):
            table, own = ops.gram(ops.unit(tokens.features[part])), weight[part]

            def gain(covered: Tensor, table: Tensor = table, own: Tensor = own) -> Tensor:
                return own * (table - covered[..., None]).clamp(min=0).sum(1)

            start = torch.zeros_like(table[:, 0])
            indices.append(greedy.stepwise(table, start, keep, gain, _cover))
        return ops.prune(tokens.features, torch.cat(indices))


def _cover(covered: Tensor, row: Tensor, own: Tensor) -> Tensor:
    return torch.maximum(covered, row)
