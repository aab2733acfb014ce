"""Attention of a few query tokens in one decoder layer, recomputed from its hidden states.

No attention map is asked of the model, so that SDPA and FlashAttention stay on: for the rows that
are needed, the layer's own norm, projections and rotation are applied once more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE in half-split layout: x (B, H, S, D), cos and sin (B, S, D)."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos[:, None] + turned * sin[:, None]


def take(x: Tensor, index: Tensor) -> Tensor:
    """x (B or 1, S, ...) at index (B, M) -> (B, M, ...)."""
    x = x.expand(index.shape[0], *x.shape[1:])
    index = index.to(x.device)
    return x[torch.arange(len(index), device=x.device)[:, None], index]


@torch.no_grad()
def text_attention(
    layer: Any,
    hidden: Tensor,
    rotary: tuple[Tensor, Tensor],
    queries: Tensor,
    real: Tensor,
    mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """How much the query tokens attend to each token in `layer`, and the layer's keys.

    layer: a decoder layer with `input_layernorm` and `self_attn` (q_proj, k_proj, scaling).
    hidden: (B, S, D) entering the layer. rotary: cos and sin, (B or 1, S, head_dim).
    queries: (B, Q) int64 places; real: (B, Q) bool. mask: (B, S) bool, False at padding.
    Returns the softmax over the whole causal row in float32, averaged over heads and real
    queries: (B, S) float32; and the rotated keys (B, S, key heads * head_dim), before grouped
    heads are repeated.
    """
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    cos, sin = (part.expand(len(hidden), -1, -1) for part in rotary)
    width = attention.head_dim
    q = attention.q_proj(take(normed, queries)).unflatten(-1, (-1, width))
    k = attention.k_proj(normed).unflatten(-1, (-1, width))
    if hasattr(attention, "q_norm"):
        q, k = attention.q_norm(q), attention.k_norm(k)
    q = _rotate(q.transpose(1, 2), take(cos, queries), take(sin, queries))
    k = _rotate(k.transpose(1, 2), cos, sin)
    groups = q.shape[1] // k.shape[1]
    logits = (q.float() * attention.scaling) @ k.float().repeat_interleave(groups, 1).mT
    place = torch.arange(hidden.shape[1], device=hidden.device)
    queries, real, mask = (x.to(hidden.device) for x in (queries, real, mask))
    seen = mask[:, None] & (place <= queries[..., None])
    weights = torch.softmax(logits.masked_fill(~seen[:, None], -torch.inf), dim=-1).mean(1)
    weights = weights.masked_fill(~real[..., None], 0).sum(1) / real.sum(1, keepdim=True)
    return weights, k.transpose(1, 2).flatten(2)
