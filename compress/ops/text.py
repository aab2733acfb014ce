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
