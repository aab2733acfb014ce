"""VisPruner: salient tokens, and diverse ones among the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress import ops
from compress.methods.base import Method
from compress.tokens import Reduction, VisualTokens


@dataclass(frozen=True)
class VisPruner(Method):
    """VisPruner (arXiv 2412.01818, section 3; code Theia-4869/VisPruner).

    A share `important` of the kept tokens are the most salient. The rest, listed by saliency, is
    thinned `step` at a time: split by even and odd place, the even tokens most similar (cosine of
    pre-projector features) to an odd one go, the kept evens (most similar first) and then the odds
    are the next list. As the released code, but similarities are computed once, and batched. A
    video is reduced frame by frame.
    """

    features_from: ClassVar[str] = "pre_projector"
    requires: ClassVar[frozenset[str]] = frozenset({"saliency"})
    per_frame: ClassVar[bool] = True

    important: float = 0.5
    step: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.important <= 1:
            raise ValueError(f"VisPruner: important is {self.important}; it must be in 0..1")
        if self.step < 1:
            raise ValueError(f"VisPruner: step is {self.step}; it must be at least 1")

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        salient = int(keep * self.important)
        ranked = ops.rank(tokens.need("saliency"))
        diverse = [
            self._diverse(tokens.features[part], ranked[part, salient:], keep - salient)
            for part in ops.batches(len(ranked), tokens.count)
        ]
        index = torch.cat([ranked[:, :salient], torch.cat(diverse)], 1)
        return ops.prune(tokens.features, index)

    @torch.no_grad()
    def _diverse(self, features: Tensor, rest: Tensor, count: int) -> Tensor:
        """(b, count) of `rest` (b, R), thinned."""
        if count == 0:
            return rest[:, :0]
        near = ops.gram(ops.unit(features))
        while rest.shape[1] > count:
            even, odd = rest[:, ::2], rest[:, 1::2]
            gone = min(self.step, rest.shape[1] - count, even.shape[1])
            place = even[:, :, None] * near.shape[2] + odd[:, None]
            block = near.flatten(1).gather(1, place.flatten(1)).reshape(place.shape)
            order = ops.rank(block.amax(2))
            rest = torch.cat([even.gather(1, order[:, gone:]), odd], 1)
        return rest
