"""ToMe: bipartite soft matching, repeated until the count is reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress import ops
from compress.methods.base import Method
from compress.tokens import Reduction, VisualTokens


@dataclass(frozen=True)
class ToMe(Method):
    """Token merging (Bolya et al., ICLR 2023, arXiv 2210.09461, section 3), from the paper.

    A round deals the tokens alternately into sets A and B, links each of A to the one of B with
    the most similar key, and merges the r most similar links, features and keys by size-weighted
    mean; at most half the tokens a round. proportional_attention: log(size) is added to the
    attention logits of merged tokens.

    Departures: merges the output of the vision encoder, where the paper merges r tokens in every
    block; a merged token stands at its member of B from the last round. A video over 8,192 tokens
    is cut into windows. Merging across frames is allowed within a window.
    """

    features_from: ClassVar[str] = "pre_projector"
    requires: ClassVar[frozenset[str]] = frozenset({"keys"})
    pairwise: ClassVar[bool] = True

    proportional_attention: bool = False

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        n = tokens.count
        total = Reduction.identity(tokens.features, tokens.size)
        keys = ops.wide(tokens.need("keys"))
        while n > keep:
            gone = min(n - keep, n // 2)
            anchor, assign = match(keys, gone)
            last = ops.merge(keys, anchor, assign, size=total.size)
            keys, n = last.features, n - gone
            total = total.then(last)
        return ops.merge(tokens.features, total.anchor, total.assign, size=tokens.size)


@torch.no_grad()
def match(keys: Tensor, gone: int) -> tuple[Tensor, Tensor]:
    """One round on keys (B, n, D): anchors (B, n - gone) in raster order, assign (B, n)."""
    b, n, _ = keys.shape
    place = torch.arange(n, device=keys.device)
    first, second = place[::2], place[1::2]
    links, targets = [], []
    for part in ops.batches(b, n):
        near = ops.cosine(keys[part, ::2], keys[part, 1::2])
        best = near.max(2)
        links.append(best.values)
        targets.append(best.indices)
    order = ops.rank(torch.cat(links))[:, :gone]
    away = first[order]
    into = second[torch.cat(targets).gather(1, order)]
    anchor = ops.others(away, n)
    row = torch.full((b, n), -1, dtype=torch.int64, device=keys.device)
    row.scatter_(1, anchor, torch.arange(n - gone, device=keys.device).expand(b, -1))
    return anchor, row.scatter(1, away, row.gather(1, into))
