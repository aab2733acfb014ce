"""PruneSID: groups along principal components, in each the salient tokens that differ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress import ops
from compress.methods.base import Method
from compress.tokens import Reduction, VisualTokens


@dataclass(frozen=True)
class PruneSID(Method):
    """PruneSID (ICLR 2026, arXiv 2603.09480, section 3; code ZhengyaoFang/PruneSID).

    Tokens are grouped by the principal component, of keep / 4, on which they weigh most. In each
    group a token is passed over if a more salient one that is not is more similar to it than keep /
    `spread` times the mean cosine of all pairs. Groups keep tokens in proportion to those that are
    not passed over: at least one, at most 5 * ceil(keep / 64), which is raised until they suffice.

    Departures from the released code: components come from an exact decomposition (it draws);
    the class token is not kept; ties go to the lower index.
    """

    features_from: ClassVar[str] = "pre_projector"
    requires: ClassVar[frozenset[str]] = frozenset({"saliency"})
    pairwise: ClassVar[bool] = True

    spread: float = 32.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.spread > 0:
            raise ValueError(f"PruneSID: spread is {self.spread}; it must be above 0")

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        indices = []
        with torch.no_grad():
            for part in ops.batches(*tokens.features.shape[:2]):
                x, saliency = tokens.features[part], ops.wide(tokens.need("saliency")[part])
                group = components(x, max(1, keep // 4))
                stays = self._survivors(x, saliency, group, keep)
                indices.append(_choose(saliency, group, stays, keep))
        return ops.prune(tokens.features, torch.cat(indices))

    def _survivors(self, x: Tensor, saliency: Tensor, group: Tensor, keep: int) -> Tensor:
        """(B, N) bool: tokens that no more salient one of their group passes over."""
        n = x.shape[1]
        cosine = ops.gram(ops.unit(x))
        upper = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
        pairs = max(1, n * (n - 1) // 2)
        limit = keep / self.spread * cosine.masked_fill(~upper, 0).sum((1, 2)) / pairs
        order = ops.rank(saliency)
        alike = (cosine > limit[:, None, None]) & (group[:, :, None] == group[:, None])
        ranked = ops.gather(alike, order).gather(2, order[:, None].expand(-1, n, -1))
        stays = torch.ones_like(group, dtype=torch.bool)
        for place in range(1, n):
            earlier = ranked[:, place, :place] & stays[:, :place]
            stays[:, place] = ~earlier.any(1)
        return torch.empty_like(stays).scatter(1, order, stays)


def components(x: Tensor, count: int) -> Tensor:
    """(B, N) int64: of the `count` first principal components of sigmoid(x), x (B, N, D) with
    channels as observations, the one on which each token weighs most."""
    x = ops.wide(x).sigmoid()
    x = (x - x.mean(2, keepdim=True)).double()
    vectors = torch.linalg.eigh(x @ x.mT).eigenvectors.flip(2)[..., :count]
    return vectors.abs().argmax(2)


def _choose(saliency: Tensor, group: Tensor, stays: Tensor, keep: int) -> Tensor:
    """(B, keep): of each group those that stay by saliency, then the others."""
    n, groups = saliency.shape[1], max(1, keep // 4)
    one = torch.nn.functional.one_hot(group, groups)
    size, left = one.sum(1), (one * stays[..., None]).sum(1)
    quota = _quotas(size, left, keep)
    order = ops.rank(saliency)
    order = order.gather(1, (~stays).gather(1, order).sort(dim=1, stable=True).indices)
    order = order.gather(1, group.gather(1, order).sort(dim=1, stable=True).indices)
    ranked_group = group.gather(1, order)
    first = size.cumsum(1) - size
    place = torch.arange(n, device=group.device) - first.gather(1, ranked_group)
    taken = place < quota.gather(1, ranked_group)
    # Exactly `keep` are taken: a stable sort puts them first without asking how many there are.
    return order.gather(1, taken.sort(dim=1, descending=True, stable=True).indices)[:, :keep]


def _quotas(size: Tensor, left: Tensor, keep: int) -> Tensor:
    """(B, groups) int64 summing to `keep`: tokens that each group keeps.

    size, left: tokens of each group, and those that are not passed over.
    """
    least = size.clamp(max=1)
    most = torch.minimum(size, left).clamp(max=5 * math.ceil(keep / 64))
    raised = torch.arange(keep + 1, device=size.device)
    reached = torch.minimum(most[..., None] + raised, size[..., None]).sum(1)
    most = torch.minimum(most + (reached < keep).sum(1, keepdim=True), size)
    rest = (keep - least.sum(1, keepdim=True)).clamp(min=0)
    share = left / left.sum(1, keepdim=True).clamp(min=1)
    edges = (share.double().cumsum(1) * rest).round().long()
    quota = torch.minimum(least + edges.diff(dim=1, prepend=torch.zeros_like(rest)), most)
    # What does not fit goes to the groups with most left, as far as there is room.
    order = left.sort(dim=1, descending=True, stable=True).indices
    room = (most - quota).gather(1, order)
    missing = keep - quota.sum(1, keepdim=True)
    before = room.cumsum(1) - room
    added = torch.minimum(room, (missing - before).clamp(min=0))
    return quota.scatter_add(1, order, added)
