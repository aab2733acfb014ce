"""Terms of single keys in attention that takes no numbers in its mask, such as FlashAttention.

A term b_j becomes a channel: keys [K, b], queries [Q, c] with c = 1 / scaling, so that the scaled
product is that of K and Q plus b. Values get channels of zeros, which are cut off again.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from compress.runtime.attention import taking

KEY_TERMS = "foveate_key_terms"
"""The argument of a decoder layer that brings the terms, (B, keys) float32."""
MULTIPLE = 8  # of head sizes that FlashAttention runs without padding of its own
MOST = 256  # its largest head size


def folds(implementation: str) -> bool:
    """Whether terms reach this attention implementation as channels."""
    return "flash" in implementation


def fits(head_size: int, dtype: torch.dtype) -> bool:
    """Whether heads of this size have room for a term."""
    return head_size + _parts(dtype) <= MOST


def _parts(dtype: torch.dtype) -> int:
    """Channels of a term: in half precision one holds what the first one's rounding leaves."""
    return 2 if dtype.itemsize == 2 else 1


def fold(
    query: Tensor, key: Tensor, value: Tensor, terms: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values with the channels that add `terms` to the logits.

    query: (B, heads, q, d). key, value: (B, key heads, n, d). terms: (B, n) float32. scaling: of
    the products. Returns the same with d + 1 channels, or d + 2 in half precision, rounded up to a
    multiple of 8.
    """
    parts = _parts(key.dtype)
    width = -(-(query.shape[-1] + parts) // MULTIPLE) * MULTIPLE - query.shape[-1]
    # A power of two, which every type holds exactly.
    factor = 2.0 ** round(-math.log2(scaling))
    rest = terms / (scaling * factor)
    columns = []
    for _ in range(parts):
        columns.append(rest.to(key.dtype))
        rest = rest - columns[-1].float()
    channels = functional.pad(torch.stack(columns, -1), (0, width - parts))
    key = torch.cat([key, channels[:, None].expand(-1, key.shape[1], -1, -1)], -1)
    asks = query.new_full((*query.shape[:-1], parts), factor)
    query = torch.cat([query, functional.pad(asks, (0, width - parts))], -1)
    return query, key, functional.pad(value, (0, width))


def _fold_held(
    terms: Tensor, query: Tensor, key: Tensor, value: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    held = key.shape[2]  # a sliding layer holds the last keys, a static cache room for more
    terms = functional.pad(terms[:, -held:], (0, max(0, held - terms.shape[1])))
    return fold(query, key, value, terms.to(key.device), scaling)


folding = taking(KEY_TERMS, _fold_held)
"""From an attention function to one that folds the terms which some layers bring."""
