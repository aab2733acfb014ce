"""PruMerge+: salient and evenly spaced tokens, each taking in those near it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress import ops
from compress.methods.base import Method, choose
from compress.tokens import Reduction, VisualTokens


@dataclass(frozen=True)
class PruMerge(Method):
    """LLaVA-PruMerge+ (arXiv 2403.15388, section 3; code 42Shawn/LLaVA-PruMerge).

    A quarter (`salient`) of the kept tokens are the most salient, the others evenly spaced over
    the rest (the "+"; the released stride makes about three spaced tokens for each salient one).
    merge: "mean", every other token merged into the kept one of most similar key, or "released":
    each kept token adds its `neighbours` nearest, weighted by saliency and not normalised
    (clusters overlap, nothing is conserved), and one more token is the sum of all others, weighted
    likewise; it stands at the most salient of them and comes last.

    Departures: the count is given, not found from outliers; saliency is the attention averaged
    over heads and keys are head means (the released code treats the layer as a single head). A
    video is reduced frame by frame.
    """

    features_from: ClassVar[str] = "pre_projector"
    requires: ClassVar[frozenset[str]] = frozenset({"saliency", "keys"})
    per_frame: ClassVar[bool] = True

    salient: float = 0.25
    merge: str = "mean"
    neighbours: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        choose(self, merge=("mean", "released"))
        if not 0 <= self.salient <= 1:
            raise ValueError(f"PruMerge: salient is {self.salient}; it must be in 0..1")
        if self.neighbours < 0:
            raise ValueError(f"PruMerge: neighbours is {self.neighbours}; it must be 0 or more")

    @property
    def scoring_layer(self) -> int | None:
        return -1

    @property
    def ordered(self) -> bool:
        return self.merge != "released"

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        extra = 1 if self.merge == "released" and keep > 1 else 0
        ranked = ops.rank(tokens.need("saliency"))
        count = max(1, round((keep - extra) * self.salient))
        rest = ops.others(ranked[:, :count], tokens.count)
        place = ops.spread(rest.shape[1], keep - extra - count, rest.device)
        kept = torch.cat([ranked[:, :count], rest[:, place]], 1).sort(dim=1).values
        if self.merge == "mean":
            return ops.merge(tokens.features, kept, ops.to_nearest(tokens.need("keys"), kept))
        return self._released(tokens, kept, extra)

    def _released(self, tokens: VisualTokens, kept: Tensor, extra: int) -> Reduction:
        x = ops.wide(tokens.features)
        saliency = ops.wide(tokens.need("saliency"))
        keys = tokens.need("keys")
        near = ops.cosine(ops.gather(keys, kept), keys).scatter(2, kept[..., None], -torch.inf)
        order = near.sort(dim=2, descending=True, stable=True).indices
        nearest = order[..., : min(self.neighbours, tokens.count - 1)]
        weight = torch.zeros_like(near).scatter(
            2, nearest, saliency[:, None].expand_as(near).gather(2, nearest)
        )
        rows = ops.gather(x, kept) + weight @ x
        others = ops.others(kept, tokens.count)
        plain = ops.prune(tokens.features, kept)
        if not extra:
            return Reduction(rows.to(tokens.features.dtype), plain.assign, kept, plain.size)
        share = saliency.gather(1, others)
        last = (share[:, None] @ ops.gather(x, others)).to(rows.dtype)
        best = others.gather(1, share.argmax(1, keepdim=True))
        assign = plain.assign.masked_fill(plain.assign < 0, kept.shape[1])
        size = torch.full_like(best, others.shape[1])
        return Reduction(
            torch.cat([rows, last], 1).to(tokens.features.dtype),
            assign,
            torch.cat([kept, best], 1),
            torch.cat([plain.size, size], 1),
        )
