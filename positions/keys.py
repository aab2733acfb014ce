"""Move cached keys to new positions (positional integrity encoding).

A cached key is R(old) k. Since R(new) k = R(new - old) R(old) k, one rotation by the difference
moves it, without the raw key (PIE, arXiv 2407.03157, section 3). Values do not depend on positions.
The rotation is exact; above the first layer, hidden states still contain what evicted tokens
contributed.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from positions.channels import ChannelTable, inverse_frequencies
from positions.errors import PositionError


def rerotate(
    keys: Tensor,
    old: Tensor,
    new: Tensor,
    inv_freq: Tensor,
    channels: ChannelTable,
    *,
    pairing: Literal["halves", "neighbours"] = "halves",
) -> Tensor:
    """Return the keys, rotated from their old positions to new ones.

    Args:
        keys: (B, H, S, D) as cached; the first 2 C of the D entries are rotary.
        old, new: (S, K, 3) or (B, S, K, 3) float64 positions of the S keys, as in `Plan.positions`.
            K of `new` may be 1. Zeros as `new` give the raw keys.
        inv_freq: (C,).
        channels: which axis and slot each of the C channels reads.
        pairing: the two entries of a channel: c and c + C (Llama, Qwen), or 2 c and 2 c + 1 (GLM).

    The difference is computed and reduced modulo 2 pi in float64; the rotation is computed in
    float32 and the result cast to the dtype of the keys. Every call rounds once, which adds up in
    bfloat16.

    Raises:
        PositionError: shapes do not match.
    """
    old, new = (x if x.ndim == 4 else x[None] for x in (old, new))
    slots = {old.shape[2], new.shape[2]}
    length, width = keys.shape[-2], 2 * inv_freq.numel()
    fits = old.shape[1] == new.shape[1] == length and {old.shape[0], new.shape[0]} <= {
        1,
        keys.shape[0],
    }
    if not fits or not slots <= {1, channels.slots} or keys.shape[-1] < width:
        raise PositionError(
            f"keys {tuple(keys.shape)} with old positions {tuple(old.shape)}, new positions "
            f"{tuple(new.shape)}, {inv_freq.numel()} frequencies and {channels.slots} slots: "
            "expected (B, H, S, D >= 2 C) and (B or 1, S, slots or 1, 3)"
        )
    shift = (new.double() - old.double()).to(inv_freq.device)
    angles = channels.angles(shift, inv_freq).float().to(keys.device)[:, None]
    cos, sin = angles.cos(), angles.sin()
    turned = keys.float()
    if pairing == "halves":
        first, second = turned[..., : width // 2], turned[..., width // 2 : width]
    else:
        first, second = turned[..., 0:width:2], turned[..., 1:width:2]
    pair = (first * cos - second * sin, second * cos + first * sin)
    joined = torch.cat(pair, -1) if pairing == "halves" else torch.stack(pair, -1).flatten(-2)
    return torch.cat((joined, turned[..., width:]), dim=-1).to(keys.dtype)


def move_cache(
    cache: Any,
    rotary_emb: nn.Module,
    old: Tensor,
    new: Tensor,
    *,
    keep: Tensor | None = None,
    channels: ChannelTable | None = None,
) -> None:
    """Evict or reorder tokens of a transformers `DynamicCache` and move the rest, in place.

    Args:
        old: (S, K, 3) or (B, S, K, 3), the positions of the cached tokens.
        new: (S', K, 3) or (B, S', K, 3), the new positions of the kept tokens.
        keep: (S',) int64, the cached tokens to keep, in their new order. By default all S.
        channels: needed where K > 1 (`ChannelTable.of(rotary_emb).with_slots(K)`).

    Frequencies must not have changed since the keys were cached (dynamic scaling changes them).
    """
    channels = channels or ChannelTable.of(rotary_emb)
    inv_freq = inverse_frequencies(rotary_emb)
    if keep is not None:
        old = old[..., keep, :, :]
    for layer in cache.layers:
        if keep is not None:
            index = keep.to(layer.keys.device)
            layer.keys, layer.values = layer.keys[:, :, index], layer.values[:, :, index]
        layer.keys = rerotate(layer.keys, old, new, inv_freq, channels)
