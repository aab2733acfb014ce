"""Attention of a few query rows in one decoder layer, recomputed from its hidden states.

No attention map is asked of the model, so SDPA and FlashAttention stay on. For the rows that are
needed, the layer's own norm, projections and rotation are applied once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from compress.runtime.calibrated import distance_terms
from compress.runtime.tensors import gather
from vlm.families import ModelAdapter

# Attention logits that exist at one time: 64 MiB in float32.
LOGITS = 2**24


@dataclass(frozen=True)
class ScoringRows:
    """Which of S new tokens are query rows, and which keys there are: P cached ones, then the S.

    queries: (B, Q) int64 columns; real: (B, Q) bool. mask: (B, S) bool, False at padding.
    cached: (B, P) bool, False at padding. past: (B, key heads, P, head_dim) rotated keys, None
    where P = 0. bias: (B, P + S) float32, added to the logits of each key. samples: (B, S) int64,
    where rows hold several samples: a query sees and ranks the tokens of its own sample alone.
    blocks: (B, S) int64, as `ModelAdapter.attention_blocks`. distant: (B, S) bool, keys that get
    the distance term of `compress.Calibration`. cap: as `ModelAdapter.logit_cap`.
    """

    queries: Tensor
    real: Tensor
    mask: Tensor
    cached: Tensor
    past: Tensor | None = None
    bias: Tensor | None = None
    samples: Tensor | None = None
    blocks: Tensor | None = None
    distant: Tensor | None = None
    cap: float | None = None

    def to(self, device: torch.device) -> ScoringRows:
        """The same on another device."""
        moved: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in vars(self).items()
        }
        return ScoringRows(**moved)


@torch.no_grad()
def text_attention(
    adapter: ModelAdapter,
    layer: int,
    hidden_states: Tensor,
    rotary: Any,
    rows: ScoringRows,
    priors: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """How much the query rows attend to each new token in a decoder layer, and the layer's keys.

    Args:
        adapter: of the model.
        layer: number of a decoder layer with `self_attn` (q_proj, k_proj, scaling).
        hidden_states: (B, S, D) entering the layer.
        rotary: cos and sin, (B or 1, S, head_dim), as the layer gets them.
        priors: (B, K) int64, columns of further rows, each of which is read alone; default none.

    Returns:
        The softmax over the whole causal row in float32, averaged over heads and real query rows,
        (B, S) float32; the rotated keys, (B, S, key heads * head_dim), before grouped heads are
        repeated; and the softmax of the further rows, averaged over heads, (B, K, S) float32.
    """
    attention = adapter.layers[layer].self_attn
    weight = attention.k_proj.weight
    device = hidden_states.device if weight.is_meta else weight.device
    rows = replace(rows.to(device), cap=adapter.logit_cap(attention))
    alone = rows.queries[:, :0] if priors is None else priors.to(device)
    columns = torch.cat([rows.queries, alone], 1)
    rotary = adapter.cos_sin(rotary)
    query, key = projections(adapter, layer, hidden_states, rotary, columns)
    scale = adapter.query_scale(attention, columns + rows.cached.shape[1])
    query = query if scale is None else query * scale[:, None, :, None]
    keys = key if rows.past is None else torch.cat([rows.past.to(key.dtype), key], dim=2)
    terms = None
    if rows.distant is not None:
        cos, sin = (part.to(device).expand(len(columns), -1, -1) for part in rotary)
        own = (gather(cos, columns), gather(sin, columns))
        terms = distance_terms(own, (cos, sin), rows.distant)
    asked = rows.queries.shape[1]
    parts = [slice(0, asked), *(slice(k, k + 1) for k in range(asked, columns.shape[1]))]
    weights = []
    for part in parts:
        real = rows.real if part.start == 0 else torch.ones_like(columns[:, part], dtype=torch.bool)
        some = replace(rows, queries=columns[:, part], real=real)
        added = None if terms is None else terms[:, part]
        weights.append(_mean_attention(query[:, :, part], keys, some, added))
    single = torch.stack(weights[1:], 1) if alone.shape[1] else weights[0][:, None][:, :0]
    return weights[0], key.transpose(1, 2).flatten(2), single


def projections(
    adapter: ModelAdapter,
    layer: int,
    hidden_states: Tensor,
    rotary: tuple[Tensor, Tensor],
    queries: Tensor,
) -> tuple[Tensor, Tensor]:
    """Rotated and scaled queries (B, H, Q, d) of the columns `queries` (B, Q) int64, and rotated
    keys (B, key heads, S, d) of all columns, as a decoder layer makes them of `hidden_states`."""
    block = adapter.layers[layer]
    attention = block.self_attn
    weight = attention.k_proj.weight  # on its own device, or without data where it is offloaded
    device = hidden_states.device if weight.is_meta else weight.device
    cos, sin = (part.to(device).expand(len(queries), -1, -1) for part in rotary)
    normed = adapter.attention_norm(block)(hidden_states.to(device))
    width = attention.head_dim
    key = attention.k_proj(normed).unflatten(-1, (-1, width))
    heads = key.shape[2] * attention.num_key_value_groups
    # Where the output of each head is gated, its gate comes after its query.
    query = attention.q_proj(gather(normed, queries)).unflatten(-1, (heads, -1))[..., :width]
    query_norm, key_norm = adapter.head_norms(attention)
    query = query if query_norm is None else query_norm(query)
    key = key if key_norm is None else key_norm(key)
    own = (gather(cos, queries), gather(sin, queries))
    query = adapter.rotate(attention, query.transpose(1, 2), *own)
    key = adapter.rotate(attention, key.transpose(1, 2), cos, sin)
    return query * attention.scaling, key


def _mean_attention(query: Tensor, keys: Tensor, rows: ScoringRows, terms: Tensor | None) -> Tensor:
    """(B, S): attention of scaled queries (B, H, Q, d) to keys (B, key heads, P + S, d), averaged
    over heads and real query rows, in bounded memory and without repeating grouped keys.

    terms: (B, Q, S), added to the logits of the new keys.
    """
    batch, heads, count, _ = query.shape
    key_heads, length = keys.shape[1], keys.shape[2]
    grouped = query.float().unflatten(1, (key_heads, heads // key_heads))
    total = torch.zeros(batch, rows.mask.shape[1], device=keys.device)
    for part in _chunks(count, batch * heads * length):
        seen, ranks = _seen(rows, part)
        added = None
        if terms is not None:
            added = functional.pad(terms[:, part], (length - terms.shape[2], 0))[:, None, None]
        some = max(
            1, LOGITS // max(1, batch * (heads // key_heads) * (part.stop - part.start) * length)
        )
        for first in range(0, key_heads, some):
            group = slice(first, first + some)
            logits = grouped[:, group, :, part] @ keys[:, group, None].float().mT
            if rows.cap is not None:
                logits = rows.cap * torch.tanh(logits / rows.cap)
            if rows.bias is not None:
                logits = logits + rows.bias[:, None, None, None]
            if added is not None:
                logits = logits + added
            weights = logits.masked_fill(~seen[:, None, None], -torch.inf).softmax(dim=-1)
            own = weights[..., length - total.shape[1] :].sum((1, 2))
            total += own.masked_fill(~ranks, 0).sum(1)
    number = rows.real.sum(1, keepdim=True)
    if rows.samples is not None:
        # Each token is ranked by the query rows of its own sample.
        asked = rows.samples.gather(1, rows.queries)
        asked = asked.masked_fill(~rows.real, -1)
        number = (asked[:, :, None] == rows.samples[:, None]).sum(1)
    return total / (heads * number.clamp(min=1))


def _chunks(count: int, each: int) -> Iterator[slice]:
    """Slices of `count` query rows, each row of which takes `each` logits over all heads."""
    step = max(1, LOGITS // max(1, each))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _seen(rows: ScoringRows, part: slice) -> tuple[Tensor, Tensor]:
    """(B, q, P + S) bool: the keys that some query rows attend to; and (B, q, S or 1) bool: the
    new tokens that they rank."""
    queries = rows.queries[:, part]
    place = torch.arange(rows.mask.shape[1], device=queries.device)
    seen = place <= queries[..., None]
    if rows.blocks is not None:
        own = rows.blocks.gather(1, queries)[..., None]
        seen = seen | ((own == rows.blocks[:, None]) & (own >= 0))
    seen = seen & rows.mask[:, None]
    ranks = rows.real[:, part, None]
    if rows.samples is not None:
        own = rows.samples.gather(1, queries)[..., None] == rows.samples[:, None]
        seen, ranks = seen & own, ranks & own
    cached = rows.cached[:, None].expand(-1, seen.shape[1], -1)
    return torch.cat([cached, seen], dim=2), ranks
