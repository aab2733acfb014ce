"""MMR: salient tokens that are unlike those already kept."""

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
class MMR(Method):
    """Maximal marginal relevance, the selection of IDPruner (arXiv 2602.13315, section 4; code
    Tencent/AngelSlim).

    Each kept token has the largest `balance` * saliency - (1 - `balance`) * the largest cosine to a
    kept token, saliency scaled to 0..1 in each input; the first is the most salient.

    Departure: IDPruner's saliency is that of a trained scorer, here it is attention received.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"saliency"})
    pairwise: ClassVar[bool] = True

    balance: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.balance <= 1:
            raise ValueError(f"MMR: balance is {self.balance}; it must be in 0..1")

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        indices = []
        salient = ops.minmax(tokens.need("saliency"))
        for part in ops.batches(*tokens.features.shape[:2]):
            table, own = ops.gram(ops.unit(tokens.features[part])), salient[part]

            own = self.balance * own

            def score(nearest: Tensor, own: Tensor = own) -> Tensor:
                return torch.sub(own, nearest, alpha=1 - self.balance)

            start = torch.full_like(own, -1.0)  # nothing is kept: the most salient one is first
            indices.append(greedy.stepwise(table, start, keep, score, _nearest))
        return ops.prune(tokens.features, torch.cat(indices))


def _nearest(nearest: Tensor, row: Tensor, own: Tensor) -> Tensor:
    return torch.maximum(nearest, row)
