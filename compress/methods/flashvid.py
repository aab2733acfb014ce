"""FlashVID: salient tokens that differ in each frame, and trees of what stays the same in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from compress import ops
from compress.budget import Schedule, schedule_layers
from compress.methods.base import Method
from compress.ops import greedy
from compress.ops.windows import cut_after, shares
from compress.tokens import Reduction, VisualTokens


@dataclass(frozen=True)
class FlashVID(Method):
    """FlashVID (ICLR 2026, arXiv 2602.08024, section 3; code Fanziyang-v/FlashVID), for video.

    The video is cut where the cosine of neighbouring frames' means is below `threshold`, and at
    the least similar ones until there are `segments`. A share `salient` of the tokens are chosen
    frame by frame: each has the largest saliency times distance (1 - cosine) to those before it,
    the first to its nearest other. Every other token links to the most similar of those in the
    previous frame of its segment if their cosine is above `link`, or above more where too few would
    be left: trees, whose roots are clustered by DPC-KNN in each frame. A cluster becomes the mean
    of all tokens of its trees.

    In the language model `ratios` of the tokens stay from `layers` on (layer 20 of 28), by the last
    token's attention. Tokens that enter are then 1.25 times the budget, as published.

    Departures from the released code: no token is kept twice; ties go to the lower index, and not
    by noise; counts are exact over the video; the root that trees of a cluster are merged into
    stands for them; roots of a frame that keeps none of them are dropped.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"saliency"})
    pairwise: ClassVar[bool] = True

    threshold: float = 0.9
    segments: int = 8
    salient: float = 0.7
    link: float = 0.8
    neighbours: int = 7
    layers: tuple[int | float, ...] = (20 / 28,)
    ratios: tuple[float, ...] = (0.3,)
    score: str = "attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.salient <= 1:
            raise ValueError(f"FlashVID: salient is {self.salient}; it must be in 0..1")
        for name in ("segments", "neighbours"):
            if getattr(self, name) < 1:
                raise ValueError(f"FlashVID: {name} is {getattr(self, name)}; at least 1")
        if len(self.layers) != len(self.ratios):
            raise ValueError(f"FlashVID: layers {self.layers}, ratios {self.ratios} must pair up")

    def schedule(self, keep: int, depth: int) -> Schedule:
        counts = (int(keep * ratio) for ratio in self.ratios)
        return tuple(zip(schedule_layers(depth, self.layers), counts, strict=False))

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        count = round(keep * self.salient)
        with torch.no_grad():
            chosen = self._salient(tokens, count)
            if count == keep:
                return ops.prune(tokens.features, chosen)
            root = self._roots(tokens, chosen, keep - count)
            centres, assign = self._clusters(tokens, root, keep - count)
            anchors = torch.cat([centres, chosen], 1)
            assign = torch.where(root < 0, -1, assign.gather(1, root.clamp(min=0)))
        return ops.merge(tokens.features, anchors, assign, size=tokens.size)

    def _salient(self, tokens: VisualTokens, count: int) -> Tensor:
        """(B, count): so many of each frame, as even as whole numbers allow."""
        t, h, w = tokens.grid
        b, quotas = len(tokens.features), shares(count, t)
        vectors = tokens.features.reshape(b * t, h * w, -1)
        weight = tokens.need("saliency").reshape(b * t, h * w)
        order = greedy.farthest(vectors, max(quotas), weight).unflatten(0, (b, t))
        parts = [order[:, i, :quota] + i * h * w for i, quota in enumerate(quotas)]
        return torch.cat(parts, 1)

    def _roots(self, tokens: VisualTokens, chosen: Tensor, least: int) -> Tensor:
        """(B, N): the root of each token's tree, -1 for those chosen. least: roots at least."""
        (t, h, w), n, b = tokens.grid, tokens.count, len(tokens.features)
        free = torch.ones(b, n, dtype=torch.bool, device=chosen.device).scatter(1, chosen, False)
        frames = ops.unit(tokens.features).unflatten(1, (t, h * w))
        features = tokens.features.unflatten(1, (t, h * w))
        parted = cut_after(features, self.threshold, self.segments - 1)
        table = frames[:, 1:] @ frames[:, :-1].mT
        table = table.masked_fill(~free.unflatten(1, (t, h * w))[:, :-1, None], -torch.inf)
        best = table.max(3)
        value = best.values.masked_fill(parted[..., None], -torch.inf).flatten(1)
        value = functional.pad(value, (h * w, 0), value=-torch.inf)
        value = value.masked_fill(~free | (value <= self.link), -torch.inf)
        strongest = ops.top(value, max(0, n - chosen.shape[1] - least))
        linked = torch.zeros_like(free).scatter(1, strongest, True) & (value > -torch.inf)
        own = torch.arange(n, device=chosen.device).expand(b, n)
        first = torch.arange(t - 1, device=chosen.device)[:, None] * h * w
        parent = functional.pad((best.indices + first).flatten(1), (h * w, 0))
        root = torch.where(linked, parent, own)
        for _ in range(max(1, t - 1).bit_length()):
            root = root.gather(1, root)
        return root.masked_fill(~free, -1)

    def _clusters(self, tokens: VisualTokens, root: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Roots (B, count) that stay, and for each root the row of one, -1 where its frame has
        none. (B, N), of which only roots are read."""
        (t, h, w), n, b = tokens.grid, tokens.count, len(tokens.features)
        x = ops.wide(tokens.features)
        sizes = ops.segment_sum(torch.ones_like(x[..., :1]), root, n)
        trees = (ops.segment_sum(x, root, n) / sizes.clamp(min=1)).reshape(b * t, h * w, -1)
        among = (sizes[..., 0] > 0).reshape(b * t, h * w)
        peaks = ops.density_peaks(trees, self.neighbours, among).clamp(min=-1e30)
        peaks = peaks.masked_fill(~among, -torch.inf).reshape(b, t, h * w)
        quota = x.new_tensor(shares(count, t)).expand(b, t)
        centres = ops.by_quota(peaks, quota, count)
        distance = ops.squared_distances(trees, trees).reshape(b, t, h * w, h * w)
        place = torch.full((b, n), -1, device=root.device)
        row = torch.arange(count, device=root.device).expand(b, count)
        place = place.scatter(1, centres, row).unflatten(1, (t, 1, h * w))
        near = distance.masked_fill(place < 0, torch.inf).min(3)
        assign = place[:, :, 0].gather(2, near.indices)
        return centres, torch.where(near.values < torch.inf, assign, -1).flatten(1)
