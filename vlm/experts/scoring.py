"""Which cells one attention layer attends to, from its queries and keys alone.

The tower is never asked for attention maps, so that its attention stays on SDPA or FlashAttention.
What the layer's own projections put out is watched while the tower runs, and one row of attention
(or a running sum of all rows) is computed from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

SaliencyRule = Literal["auto", "cls", "received"]

# Attention logits held at one time: 64 MiB in float32.
LOGITS = 2**24


@dataclass
class Seen:
    """One call of a watched module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


@contextmanager
def watching(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Seen]]:
    """Record the last call of each module while the block runs; no hook is left behind."""
    seen: dict[str, Seen] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            seen[name] = Seen(args, kwargs, output)

        return hook

    handles = [m.register_forward_hook(record(n), with_kwargs=True) for n, m in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class Attention:
    """Queries and keys of one layer.

    query, key: (B, heads, S, d), S counting the tower's prefix tokens too. scale: of the logits.
    bias: for a range of query rows, what is added to the scaled logits, (B or 1, heads, rows, S).
    """

    query: Tensor
    key: Tensor
    scale: float
    bias: Callable[[slice], Tensor] | None = None


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, S, heads * d) -> (B, heads, S, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def saliency(attention: Attention, prefix: int, rule: SaliencyRule = "auto") -> Tensor:
    """Attention that each cell receives, head mean, softmax in float32: (B, N) float32.

    prefix: tokens before the cells (class token, registers).
    rule: "cls" from the first token alone (VisionZip, arXiv 2412.04467, section 3.2); "received"
        the mean over all queries; "auto" is "cls" where there is a class token.
    """
    if rule == "auto":
        rule = "cls" if prefix else "received"
    query = attention.query[:, :, :1] if rule == "cls" else attention.query
    batch, heads, rows, _ = query.shape
    length = attention.key.shape[2]
    total = torch.zeros(batch, length, dtype=torch.float32, device=query.device)
    step = max(1, LOGITS // (batch * heads * length))
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        logits = query[:, :, part] @ attention.key.mT * attention.scale
        if attention.bias is not None:
            logits = logits + attention.bias(part)
        total += logits.softmax(-1, dtype=torch.float32).mean(1).sum(1)
    return total[:, prefix:] / rows


def weights(attention: Attention) -> Tensor:
    """The whole map, head mean, softmax in float32: (B, S, S) float32, one head at a time."""
    batch, heads, length, _ = attention.query.shape
    total = torch.zeros(batch, length, length, device=attention.query.device)
    bias = None if attention.bias is None else attention.bias(slice(0, length))
    for head in range(heads):
        logits = attention.query[:, head] @ attention.key[:, head].mT * attention.scale
        if bias is not None:
            logits = logits + bias[:, head]
        total += logits.softmax(-1, dtype=torch.float32)
    return total / heads
