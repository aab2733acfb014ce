"""CDPruner: diversity conditioned on the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress import ops
from compress.methods.base import Method
from compress.ops import greedy
from compress.tokens import Reduction, VisualTokens


def relevance(features: Tensor, query: Tensor, mask: Tensor | None) -> Tensor:
    """(B, N): mean cosine of each token to the real query tokens; 0 where there are none."""
    text = ops.unit(query)
    if mask is None:
        mask = torch.ones(query.shape[:2], dtype=torch.bool, device=query.device)
    total = text.masked_fill(~mask[..., None], 0.0).sum(1, keepdim=True)
    mean = total / mask.sum(1).clamp(min=1)[:, None, None]
    x = ops.wide(features)
    return (x @ mean.mT.to(x.dtype))[..., 0] / x.norm(dim=2).clamp(min=1e-12)


@dataclass(frozen=True)
class CDPruner(Method):
    """CDPruner (arXiv 2506.10967, section 3; code Theia-4869/CDPruner): conditional DPP.

    Kernel q_i q_j cos(x_i, x_j) of projected features, q the relevance to the question scaled to
    0..1 plus 1e-6; greedy MAP. `negate` flips the relevance, as the released code does with CLIP's
    own text encoder, in whose space the patches that match a text lie away from it. The kernel is
    x x^T with x = q_i x_i / |x_i|.

    Departures: relevance is taken to the question's embeddings in the language model's space (a
    model need not have CLIP's text encoder) and scaled per input, not over the batch. An input
    without text has equal relevance everywhere, which gives plain diversity.
    """

    wants: ClassVar[frozenset[str]] = frozenset({"text_query"})
    pairwise: ClassVar[bool] = True

    negate: bool = False

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        x = ops.wide(tokens.features)
        if tokens.text_query is None:
            score = torch.zeros_like(x[..., 0])
        else:
            score = relevance(x, tokens.text_query, tokens.text_query_mask)
        quality = ops.minmax(-score if self.negate else score) + 1e-6
        factors = x * (quality / x.norm(dim=2).clamp(min=1e-12))[..., None]
        return ops.prune(tokens.features, greedy.span(factors, keep))
