"""Learned: the tokens that a trained scorer ranks highest."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from compress import ops
from compress.methods.base import Method
from compress.methods.scorer import load_scorer
from compress.tokens import Reduction, VisualTokens


@dataclass(frozen=True)
class Learned(Method):
    """The tokens with the highest scores of a learned scorer (as VisionSelector, arXiv 2510.16598).

    scorer: the folder that it was saved in (`compress.methods.scorer`; docs/train.md says how one
    is trained). It reads features after the projector, serves all budgets, and fits the model that
    it was trained with.

    Raises ValueError if there is none, it is a pickle, or its files do not fit together.
    """

    scorer: str

    def __post_init__(self) -> None:
        super().__post_init__()
        load_scorer(self.scorer)

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        scorer, features = load_scorer(self.scorer), tokens.features
        if scorer.width != features.shape[2]:
            raise ValueError(
                f"scorer {self.scorer!r} was made for {scorer.width} channels, and the visual "
                f"tokens have {features.shape[2]}: expected one that was trained with this model"
            )
        with torch.no_grad():
            scores = scorer.to(features.device)(features)
        return ops.prune(features, ops.top(scores, keep), tokens.size)
