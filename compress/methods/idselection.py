"""ID-Selection: the most salient token lowers the scores of those like it."""

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
class IDSelection(Method):
    """ID-Selection (arXiv 2604.05601, equations 7-9; no official code).

    The token with the highest score is kept, and takes exp(-`decay` * (1 - cos)^2) of its own score
    from every other, again and again. Scores begin as saliency, scaled to 0..1 in each input.

    Not in the paper: a score below 0 takes nothing from others. Saliency is attention received in
    the vision encoder, on models without a class token, too, where the paper takes the attention of
    the last text token in a decoder layer.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"saliency"})
    pairwise: ClassVar[bool] = True

    decay: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay < 0:
            raise ValueError(f"IDSelection: decay is {self.decay}; it must not be negative")

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        salient, indices = ops.minmax(tokens.need("saliency")), []
        for part in ops.batches(*tokens.features.shape[:2]):
            cosine = ops.gram(ops.unit(tokens.features[part]))
            takes = (-self.decay * (1 - cosine).square()).exp()
            indices.append(greedy.stepwise(takes, salient[part], keep, _as_it_is, _lower))
        return ops.prune(tokens.features, torch.cat(indices))


def _as_it_is(score: Tensor) -> Tensor:
    return score


def _lower(score: Tensor, row: Tensor, own: Tensor) -> Tensor:
    return torch.addcmul(score, row, own.clamp(min=0), value=-1)
