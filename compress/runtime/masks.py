"""Attention masks of decoder layers whose caches hold fewer tokens than the stock model's.

Full attention sees every earlier token that is left. A sliding or chunked layer sees those within
its window or chunk, measured in positions: between tokens that are left it counts those that are
not, too. That is the reach, and are the rotary distances, that the model was trained with; its
cache, which counts tokens, holds no fewer. A linear layer takes a mask of padding alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask

from compress.errors import CompressionError
from compress.runtime.cache_state import Span, is_static
from compress.runtime.folded import KEY_TERMS
from compress.runtime.infinite import CAPPED, Far
from compress.runtime.settings import ADDITIVE
from compress.runtime.stages import RECURRENT
from vlm.decoder import CACHE
from vlm.families import ModelAdapter


@dataclass(frozen=True)
class NewTokens:
    """The tokens of a forward, as masks depend on them.

    like: (B, q, ...) hidden states, for shape, dtype and device. cache: the cache that the layers
    will append them to, or None. dense: tokens of the sequence without reduction, these included.
    blocks: (B, q) int64, as `ModelAdapter.attention_blocks`. terms: (B, q, q) float32, added to the
    logits of pairs of these tokens. far: which keys they see under LM-Infinite, None without.
    """

    like: Tensor
    cache: Any
    dense: int
    blocks: Tensor | None = None
    terms: Tensor | None = None
    far: Far | None = None

    @property
    def count(self) -> int:
        """q."""
        return self.like.shape[1]


def layer_arguments(
    adapter: ModelAdapter, span: Span, stop: int, new: NewTokens
) -> list[dict[str, Any]]:
    """What the layers `span.first` up to `stop` are given for the newest tokens, each in place of
    its own arguments.

    span: with the newest tokens in its length.

    Raises:
        CompressionError: another tool has removed keys (kvpress), and the mask depends on which; or
            the attention implementation cannot follow a window in positions.
    """
    device, masks = new.like.device, dict[str, dict[str, Any]]()
    own: dict[str, Any] = {}
    if new.count > 1:  # one token is never taken for the first of a packed sample
        own["position_ids"] = new_indices(span, new.count, device)
    implementation = adapter.language_model.config._attn_implementation
    terms = None if implementation in ADDITIVE else span.key_bias()
    for layer in range(span.first, stop):
        kind = adapter.layer_kinds[layer]
        if kind in masks:
            continue
        masks[kind] = {"attention_mask": _mask(adapter, span, layer, new), **own}
        if terms is not None and kind not in RECURRENT:
            masks[kind][KEY_TERMS] = terms
        if new.far is not None:
            masks[kind][CAPPED] = new.far.towards(span)
    return [masks[kind] for kind in adapter.layer_kinds[span.first : stop]]


def needs_own_masks(adapter: ModelAdapter, dense: int) -> bool:
    """Whether a sequence of `dense` tokens passes the reach of a local layer: the stock mask, which
    counts tokens, need not hold then."""
    reaches = (adapter.reach(kind) for kind in set(adapter.layer_kinds))
    return any(reach is not None and reach <= dense for reach in reaches)


def _mask(adapter: ModelAdapter, span: Span, layer: int, new: NewTokens) -> Tensor | None:
    """The mask of one layer of a span."""
    config: Any = adapter.language_model.config
    kind, count = adapter.layer_kinds[layer], new.count
    if kind in RECURRENT:
        real = None if span.valid is None else span.valid[:, span.length - count : span.length]
        return None if count == 1 or real is None else real.to(new.like.device)
    reach = adapter.reach(kind)
    local = (reach is not None and reach <= new.dense) or new.far is not None
    blocks = adapter.blocks_in(kind, new.blocks)
    if span.plain and blocks is None and new.terms is None and not local:
        # The layer's own cache gives its length, so this also follows keys that others removed.
        return _stock_mask(config, span, layer, new)
    _check_cache(span, layer, new)
    implementation = config._attn_implementation
    if implementation not in ADDITIVE:
        if local and span.length < new.dense:
            raise CompressionError(
                f"decoder layer {layer} sees {reach} positions of a sequence of {new.dense}, some "
                f"of which were left out; attention implementation {implementation!r} counts "
                f"tokens: expected one of {', '.join(ADDITIVE)}, or a shorter sequence"
            )
        return _stock_mask(config, span, layer, new)
    static = is_static(new.cache)
    if count == 1 and span.bias is not None and span.samples is None and not (static or local):
        return span.added(new.like.dtype)[:, None, None].to(new.like.device)
    within = None
    if new.far is not None:
        _check_unpacked(span)
        within = new.far.seen(span)
    elif local:
        within = _within_reach(span, count, kind, int(reach or 0))
    allowed = _allowed(span, new, blocks, within)
    if within is not None and not adapter.blocks_cross_windows:
        allowed = allowed & within.to(allowed.device)
    held, offset = span.length, 0
    if new.cache is not None and (static or local):
        held, offset = new.cache.get_mask_sizes(count, layer)
    return _as_model_takes_it(
        _cut(allowed, held, offset), span, new, implementation, (held, offset)
    )


def _check_cache(span: Span, layer: int, new: NewTokens) -> None:
    if new.cache is None or is_static(new.cache):
        return
    held = int(new.cache.get_seq_length(layer))
    if held + new.count != span.length:
        raise CompressionError(
            f"the cache of decoder layer {layer} holds {held} tokens where "
            f"{span.length - new.count} were cached: keys that another tool removes can be "
            "followed in a batch without padding, and without proportional attention"
        )


def _check_unpacked(span: Span) -> None:
    if span.samples is not None:
        raise CompressionError(
            "LMInfinite with samples that are packed in one row: expected one sample a row"
        )


def _as_model_takes_it(
    allowed: Tensor, span: Span, new: NewTokens, implementation: str, columns: tuple[int, int]
) -> Tensor:
    """(B, 1, q, keys): bool for sdpa where nothing is added to the logits, else numbers to add."""
    like = new.like
    if span.bias is None and new.terms is None and implementation == "sdpa":
        return allowed[:, None]
    least = torch.finfo(like.dtype).min
    added = torch.zeros((), device=like.device)
    bias = span.key_bias()
    if bias is not None:
        added = _cut(bias, *columns)[:, None].to(like.device)
    if new.terms is not None:
        terms = torch.nn.functional.pad(new.terms, (span.length - new.count, 0))
        added = added + _cut(terms, *columns)
    return torch.where(allowed, added.to(like.dtype), least)[:, None]


def _cut(x: Tensor, held: int, offset: int) -> Tensor:
    """x (..., length) at the `held` columns from `offset` on; zeros where there are none yet."""
    x = x[..., offset : offset + held]
    return torch.nn.functional.pad(x, (0, held - x.shape[-1]))


def new_indices(span: Span, count: int, device: torch.device) -> Tensor:
    """(1, q) int64: indices of the newest tokens among those that a span's layers were given; of
    packed samples (B, q), counted from 0 in each."""
    index = torch.arange(span.length - count, span.length, device=device)[None]
    if span.samples is None:
        return index
    samples = span.samples.contiguous()
    return index - torch.searchsorted(samples, samples)


def _allowed(span: Span, new: NewTokens, blocks: Tensor | None, within: Tensor | None) -> Tensor:
    """(B, q, length) bool: which keys each of the newest tokens may attend to.

    within: (B, q, length) bool, those in reach; a block reaches further.
    """
    like, count = new.like, new.count
    real = span.real(len(like), like.device).to(like.device)[:, None]
    seen = real
    if count > 1:
        place = torch.arange(span.length, device=like.device)
        seen = seen & (place <= place[span.length - count :, None])
    if within is not None:
        seen = seen & within.to(like.device)
    if blocks is not None:
        blocks = blocks.to(like.device)
        together = (blocks[:, :, None] == blocks[:, None]) & (blocks >= 0)[:, None]
        together = torch.nn.functional.pad(together, (span.length - count, 0))
        seen = seen | (together & real)
    if span.samples is not None:
        samples = span.samples.to(like.device)
        seen = seen & (samples[:, -count:, None] == samples[:, None])
    return seen


def _within_reach(span: Span, count: int, kind: str, reach: int) -> Tensor:
    """(B, q, length) bool: which keys lie in the window or chunk of each of the newest tokens."""
    places: Tensor = span.places  # type: ignore[assignment]
    if kind == "chunked_attention" and span.valid is not None and span.samples is None:
        # Chunks begin with the first real token, wherever it stands.
        first = span.real(len(places), places.device).int().argmax(1, keepdim=True)
        places = places - places.gather(1, first)
    query, key = places[:, -count:, None], places[:, None]
    if kind == "chunked_attention":
        return torch.div(query, reach, rounding_mode="floor") == torch.div(
            key, reach, rounding_mode="floor"
        )
    return query - key < reach


def _stock_mask(config: Any, span: Span, layer: int, new: NewTokens) -> Any:
    mask = span.valid
    if mask is not None:
        mask = mask[:, : span.length].long()
    packed = span.samples is not None
    like = new.like
    return create_causal_mask(
        config=config,
        inputs_embeds=like,
        attention_mask=None if packed else mask,
        **{CACHE: new.cache},
        position_ids=new_indices(span, new.count, like.device) if packed else None,
        layer_idx=layer,
    )
