"""Attention masks of decoder layers whose caches hold fewer tokens than the stock model's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask

from compress.errors import CompressionError
from compress.runtime.cache_state import Span, is_static
from compress.runtime.settings import ADDITIVE


def span_mask(config: Any, span: Span, like: Tensor, cache: Any) -> Tensor | None:
    """The mask that attention in a span's layers takes for the newest tokens.

    Args:
        config: the language model's configuration.
        span: with the newest tokens in its length.
        like: (B, q, ...) hidden states of the newest tokens, for shape, dtype and device.
        cache: the cache that the layers will append to, or None.

    Raises:
        CompressionError: another tool has removed keys (kvpress), and the mask depends on which.
    """
    count, static = like.shape[1], is_static(cache)
    if span.plain:
        # The layer's own cache gives its length, so this also follows keys that others removed.
        return _stock_mask(config, span, like, cache)
    if cache is not None and not static:
        held = int(cache.get_seq_length(span.first))
        if held + count != span.length:
            raise CompressionError(
                f"the cache of decoder layer {span.first} holds {held} tokens where "
                f"{span.length - count} were cached: keys that another tool removes can be "
                "followed in a batch without padding, and without proportional attention"
            )
    implementation = config._attn_implementation
    if implementation not in ADDITIVE:
        return _stock_mask(config, span, like, cache)
    if count == 1 and span.bias is not None and span.samples is None and not static:
        return span.added(like.dtype)[:, None, None].to(like.device)
    allowed = _allowed(span, like)
    if static and cache is not None:
        room = cache.get_mask_sizes(count, span.first)[0] - span.length
        allowed = torch.nn.functional.pad(allowed, (0, room), value=False)
    if span.bias is None and implementation == "sdpa":
        return allowed[:, None]
    least = torch.finfo(like.dtype).min
    added = torch.zeros((), dtype=like.dtype, device=like.device)
    bias = span.key_bias()
    if bias is not None:
        bias = torch.nn.functional.pad(bias, (0, allowed.shape[2] - bias.shape[1]))
        added = bias[:, None].to(like.device, like.dtype)
    return torch.where(allowed, added, least)[:, None]


def new_indices(span: Span, count: int, device: torch.device) -> Tensor:
    """(1, q) int64: indices of the newest tokens among those that a span's layers were given; of
    packed samples (B, q), counted from 0 in each."""
    index = torch.arange(span.length - count, span.length, device=device)[None]
    if span.samples is None:
        return index
    samples = span.samples.contiguous()
    return index - torch.searchsorted(samples, samples)


def _allowed(span: Span, like: Tensor) -> Tensor:
    """(B, q, length) bool: which keys each of the newest tokens may attend to."""
    count = like.shape[1]
    seen = span.real(len(like), like.device).to(like.device)[:, None]
    if count > 1:
        place = torch.arange(span.length, device=like.device)
        seen = seen & (place <= place[span.length - count :, None])
    if span.samples is not None:
        samples = span.samples.to(like.device)
        seen = seen & (samples[:, -count:, None] == samples[:, None])
    return seen


def _stock_mask(config: Any, span: Span, like: Tensor, cache: Any) -> Any:
    mask = span.valid
    if mask is not None:
        mask = mask[:, : span.length].long()
    packed = span.samples is not None
    return create_causal_mask(
        config=config,
        inputs_embeds=like,
        attention_mask=None if packed else mask,
        past_key_values=cache,
        position_ids=new_indices(span, like.shape[1], like.device) if packed else None,
        layer_idx=span.first,
    )
