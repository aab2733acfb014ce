"""Attention of a few query tokens in one decoder layer, recomputed from its hidden states.

No attention map is asked of the model, so that SDPA and FlashAttention stay on: for the rows that
are needed, the layer's own norm, projections and rotation are applied once more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Asked:
    """Which of S new tokens ask, and which keys there are: P cached ones, then the S.

    queries: (B, Q) int64 places; real: (B, Q) bool. mask: (B, S) bool, False at padding. old:
    (B, P) bool; past: (B, key heads, P, head_dim) rotated keys, None where P = 0. bias: (B, P + S)
    float32, added to the logits of each key. samples: (B, S) int64, where rows hold several
    samples: those of one see and rank no tokens of another.
    """

    queries: Tensor
    real: Tensor
    mask: Tensor
    old: Tensor
    past: Tensor | None = None
    bias: Tensor | None = None
    samples: Tensor | None = None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE in half-split layout on the first channels: x (B, H, S, D), cos and sin (B, S, <= D)."""
    width = cos.shape[-1]
    turning, rest = x[..., :width], x[..., width:]
    a, b = turning.chunk(2, dim=-1)
    turned = turning * cos[:, None] + torch.cat([-b, a], dim=-1) * sin[:, None]
    return torch.cat([turned, rest], dim=-1)


def take(x: Tensor, index: Tensor) -> Tensor:
    """x (B or 1, S, ...) at index (B, M) -> (B, M, ...)."""
    x = x.expand(index.shape[0], *x.shape[1:])
    index = index.to(x.device)
    return x[torch.arange(len(index), device=x.device)[:, None], index]


@torch.no_grad()
def text_attention(
    layer: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor], asked: Asked
) -> tuple[Tensor, Tensor]:
    """How much the query tokens attend to each new token in `layer`, and the layer's keys.

    layer: a decoder layer with `input_layernorm` and `self_attn` (q_proj, k_proj, scaling).
    hidden: (B, S, D) entering the layer. rotary: cos and sin, (B or 1, S, head_dim).
    Returns the softmax over the whole causal row in float32, averaged over heads and real
    queries: (B, S) float32; and the rotated keys (B, S, key heads * head_dim), before grouped
    heads are repeated.
    """
    attention = layer.self_attn
    weight = attention.k_proj.weight  # on its own device, or with no data where it is offloaded
    device = hidden.device if weight.is_meta else weight.device
    queries, real, mask, old = (
        x.to(device) for x in (asked.queries, asked.real, asked.mask, asked.old)
    )
    cos, sin = (part.to(device).expand(len(queries), -1, -1) for part in rotary)
    normed = layer.input_layernorm(hidden.to(device))
    width = attention.head_dim
    q = attention.q_proj(take(normed, queries)).unflatten(-1, (-1, width))
    k = attention.k_proj(normed).unflatten(-1, (-1, width))
    if hasattr(attention, "q_norm"):
        q, k = attention.q_norm(q), attention.k_norm(k)
    q = _rotate(q.transpose(1, 2), take(cos, queries), take(sin, queries))
    k = _rotate(k.transpose(1, 2), cos, sin)
    every = k if asked.past is None else torch.cat([asked.past.to(device, k.dtype), k], dim=2)
    groups = q.shape[1] // k.shape[1]
    logits = (q.float() * attention.scaling) @ every.float().repeat_interleave(groups, 1).mT
    place = torch.arange(mask.shape[1], device=device)
    seen = mask[:, None] & (place <= queries[..., None])
    asking = real[..., None]
    if asked.samples is not None:
        samples = asked.samples.to(device)
        own = samples.gather(1, queries)[..., None] == samples[:, None]
        seen, asking = seen & own, asking & own
    earlier = old[:, None].expand(-1, seen.shape[1], -1)
    seen = torch.cat([earlier, seen], dim=2)
    if asked.bias is not None:
        logits = logits + asked.bias.to(device)[:, None, None]
    weights = torch.softmax(logits.masked_fill(~seen[:, None], -torch.inf), dim=-1).mean(1)
    weights = weights[..., old.shape[1] :].masked_fill(~asking, 0).sum(1)
    weights = weights / asking.sum(1).clamp(min=1)
    return weights, k.transpose(1, 2).flatten(2)
