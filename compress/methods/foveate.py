"""Foveate: cover what matters, in appearance and in place, and merge the rest into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress import ops
from compress.budget import Schedule, schedule_layers
from compress.methods.base import Method, choose
from compress.ops import greedy
from compress.tokens import Reduction, VisualTokens


@dataclass(frozen=True)
class Foveate(Method):
    """Weighted coverage with merging; this package's own method.

    What must be covered is a mixture of distributions over the tokens: `even` (all alike),
    `salient` (attention received), `distinct` (squared distance from the mean feature) and
    `relevant` (mean over the question's tokens of a softmax over visual tokens of cosine /
    `text_temperature`). Each number is a weight; 0 switches that part off. A part whose input is
    missing is left out, such as `relevant` for an input without text.

    Kept tokens cover it best under K_ij = exp(-|x_i - x_j|^2 / (2 (a s)^2) - |p_i - p_j|^2 /
    (2 (b r)^2)): x features, s their root mean squared pair distance, a = `appearance`; p the place
    in the grid, r the spacing that the count would have on an even lattice, b = `place`. Equal
    things far apart are each kept, an attention sink costs one token, and a blank area few. `a` or
    `b` of None drops that factor. choice: "cover", greedy maximum of sum_i w_i max_j K_ij;
    "volume", greedy determinant of the kernel w_i K_ij w_j; "top", the largest weights.

    merge: every other token is merged into its nearest kept token under K, as a size-weighted mean,
        unless K is below `purity`; False drops them.
    proportional_attention: log(size) is added to attention logits of merged tokens; None: where the
        attention implementation takes a bias (FlashAttention does not).
    layers, ratios: the in-LLM schedule, by the last token's attention: 60% of what enters is left
        from a quarter of the depth. The defaults were chosen on the validation split of the
        embedded benchmark (docs/results.md), whose language model has four layers; of schedules
        that were as good, the one that keeps tokens in every layer. score: what ranks them there,
        by default attention (`Method.score`).

    Sources of the parts: coverage, MMTok; determinant, CDPruner; saliency, VisionZip; merging and
    log(size), ToMe. New here: one mixture instead of separate quotas, and place in the kernel.
    """

    wants: ClassVar[frozenset[str]] = frozenset({"saliency", "text_query"})
    pairwise: ClassVar[bool] = True

    even: float = 1.0
    salient: float = 2.0
    distinct: float = 1.0
    relevant: float = 1.0
    appearance: float | None = 0.35
    place: float | None = 4.0
    text_temperature: float = 0.02
    choice: str = "cover"
    merge: bool = True
    purity: float = 0.5
    proportional_attention: bool | None = None
    layers: tuple[int | float, ...] = (0.25,)
    ratios: tuple[float, ...] = (0.6,)
    score: str = "attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose(self, choice=("cover", "volume", "top"))
        parts = (self.even, self.salient, self.distinct, self.relevant)
        if min(parts) < 0 or not self.even + self.distinct > 0:
            raise ValueError(
                f"Foveate: even, salient, distinct, relevant are {parts}; none may be negative, "
                "and even or distinct must be above 0 (the others may lack their input)"
            )
        for name in ("appearance", "place", "text_temperature"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"Foveate: {name} is {value}; it must be above 0")
        if len(self.layers) != len(self.ratios):
            raise ValueError(f"Foveate: layers {self.layers}, ratios {self.ratios} must pair up")

    def schedule(self, keep: int, depth: int) -> Schedule:
        layers = schedule_layers(depth, self.layers)
        counts = (int(keep * ratio) for ratio in self.ratios)
        return tuple(zip(layers, counts, strict=False))

    def weights(self, tokens: VisualTokens) -> Tensor:
        """(B, N) float32 or better, what must be covered: non-negative, summing to one."""
        x = ops.wide(tokens.features)
        parts = [(self.even, torch.ones_like(x[..., 0]))]
        if self.salient and tokens.saliency is not None:
            parts.append((self.salient, ops.wide(tokens.saliency).clamp(min=0)))
        if self.distinct:
            parts.append((self.distinct, (x - x.mean(1, keepdim=True)).square().sum(2)))
        if self.relevant and tokens.text_query is not None:
            share = (ops.cosine(tokens.text_query, x) / self.text_temperature).softmax(2)
            if tokens.text_query_mask is not None:
                share = share * tokens.text_query_mask[..., None]
            parts.append((self.relevant, share.sum(1)))
        total = torch.zeros_like(x[..., 0])
        for weight, part in parts:
            total += weight * part / part.sum(1, keepdim=True).clamp(min=1e-30)
        return total / total.sum(1, keepdim=True).clamp(min=1e-30)

    def kernel(self, tokens: VisualTokens, keep: int) -> Tensor:
        """(B, N, N) in 0..1, how well one token stands for another."""
        x = ops.wide(tokens.features)
        table = x.new_zeros(1, 1, 1)
        if self.appearance is not None:
            x = x - x.mean(1, keepdim=True)
            spread = 2 * x.square().mean((1, 2)).clamp(min=1e-30)
            scale = 2 * self.appearance**2 * spread
            table = ops.squared_distances(x, x) / -scale[:, None, None]
        if self.place is not None:
            axes = max(1, sum(length > 1 for length in tokens.grid))
            reach = self.place * (tokens.count / keep) ** (1 / axes)
            place = tokens.grid_cells.to(x.dtype)
            table = table - torch.cdist(place, place).square() / (2 * reach**2)
        return table.exp().expand(len(x), tokens.count, tokens.count)

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        anchors, assigns = [], []
        with torch.no_grad():
            for part in ops.batches(len(tokens.features), tokens.count):
                index, assign = self._choose(tokens.batch(part), keep)
                anchors.append(index)
                assigns.append(assign)
        anchor = torch.cat(anchors)
        if not self.merge:
            return ops.prune(tokens.features, anchor)
        return ops.merge(tokens.features, anchor, torch.cat(assigns), size=tokens.size)

    def _choose(self, tokens: VisualTokens, keep: int) -> tuple[Tensor, Tensor]:
        """Kept tokens (b, keep), and assign (b, N) to them."""
        weight = self.weights(tokens)
        near = self.kernel(tokens, keep)
        if self.choice == "cover":
            index = greedy.cover(near * weight[..., None], keep)
        elif self.choice == "volume":
            index = greedy.volume(near * weight[:, :, None] * weight[:, None], keep)
        else:
            index = ops.top(weight, keep)
        best = ops.gather(near, index).max(1)
        return index, torch.where(best.values >= self.purity, best.indices, -1)
