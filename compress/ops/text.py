"""Text tokens that rank visual tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.ops import similarity
from compress.ops.similarity import wide


@torch.no_grad()
def text_raters(text: Tensor, visual: Tensor, mask: Tensor | None = None) -> Tensor:
    """Text tokens that the image speaks to (SparseVLM, section 3.2) -> (B, Q) bool.

    text: (B, Q, D), visual: (B, n, D) embeddings at the language model's input. Each visual token
    spreads a softmax over the text; a text token is a rater if its mean share is above the mean.
    mask: (B, Q) bool, True at real tokens. With one text token (or equal ones) all real are kept.
    """
    mask = text.new_ones(text.shape[:2], dtype=torch.bool) if mask is None else mask
    words, total = wide(text).transpose(1, 2), wide(text).new_zeros(mask.shape)
    step = max(1, similarity.PAIRS // max(1, mask.numel()))
    for part in visual.split(step, dim=1):
        logits = (wide(part) @ words).masked_fill(~mask[:, None], -1e30)
        total += logits.softmax(dim=2).sum(dim=1)
    share = total / max(1, visual.shape[1])
    mean = share.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    raters = (share > mean) & mask
    return torch.where(raters.any(1, keepdim=True), raters, mask)


@torch.no_grad()
def against_prior(attention: Tensor, prior: Tensor) -> Tensor:
    """P log(P / Q) of each token (PriorTR, arXiv 2606.24156) -> (B, n) float32 or better.

    attention, prior: (B, n), not negative; P and Q are these, normalised over the tokens. It is
    below 0 where P < Q, and ranks as P where the prior is all zeros.
    """
    p, q = (x / x.sum(1, keepdim=True).clamp(min=1e-30) for x in (wide(attention), wide(prior)))
    return p * ((p + 1e-10) / (q + 1e-10)).log()
