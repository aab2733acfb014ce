"""Saliency, keys and attention maps from the queries and keys of one vision layer.

The vision encoder is never asked for attention maps, so its attention stays on SDPA or
FlashAttention. Softmax is computed in float32, in chunks of bounded memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal, Protocol

import torch
from torch import Tensor

SaliencyRule = Literal["auto", "cls", "received"]

# Attention logits that are held at one time: 64 MiB in float32.
LOGITS = 2**24

_ALL = slice(None)


@dataclass(frozen=True)
class Segments:
    """Queries and keys of n segments of S tokens; a token attends within its segment.

    query, key: (n, heads, S, d).
    scale: factor of the logits.
    mask: (n, 1, 1 or S, S) bool, True where a key can be seen; None if all can.
    bias: for slices of segments and of queries, what is added to the scaled logits,
        (segments or 1, heads, queries, S).
    """

    query: Tensor
    key: Tensor
    scale: float
    mask: Tensor | None = None
    bias: Callable[[slice, slice], Tensor] | None = None

    def weights(self, segments: slice = _ALL, queries: slice = _ALL) -> Tensor:
        """Softmax over keys, (segments, heads, queries, S) float32."""
        query = self.query[segments, :, queries].float() * self.scale
        logits = query @ self.key[segments].float().mT
        if self.bias is not None:
            logits = logits + self.bias(segments, queries)
        if self.mask is not None:
            mask = self.mask[segments]
            mask = mask if mask.shape[2] == 1 else mask[:, :, queries]
            logits = logits.masked_fill(~mask, torch.finfo(torch.float32).min)
        return torch.softmax(logits, dim=-1)

    def from_class_token(self) -> Tensor:
        """(n, S) float32: attention that the first token pays to each token, head mean."""
        return self.weights(_ALL, slice(0, 1))[:, :, 0].mean(1)

    def received(self) -> Tensor:
        """(n, S) float32: attention that each token receives, mean over heads and queries."""
        _, heads, length, _ = self.query.shape
        parts = []
        for segments, chunks in self._chunks():
            sums = (self.weights(segments, queries).sum((1, 2)) for queries in chunks)
            parts.append(reduce(torch.add, sums) / (heads * length))
        return torch.cat(parts)

    def maps(self) -> Tensor:
        """(n, S, S) float32: attention from each token to each token, head mean."""
        parts = []
        for segments, chunks in self._chunks():
            parts.append(
                torch.cat([self.weights(segments, queries).mean(1) for queries in chunks], 1)
            )
        return torch.cat(parts)

    def _chunks(self) -> Iterator[tuple[slice, list[slice]]]:
        """Slices of segments, each with slices of queries, of at most LOGITS logits a pair."""
        count, heads, length, _ = self.query.shape
        rows = max(1, LOGITS // (heads * length))
        step = max(1, rows // length)
        queries = [slice(start, start + rows) for start in range(0, length, rows)]
        for first in range(0, count, step):
            yield slice(first, first + step), queries


class Heads(Protocol):
    """What one vision layer tells of R rows of the vision encoder: all inputs, in order."""

    def keys(self) -> Tensor:
        """(R, d): keys as the attention reads them, averaged over heads."""
        ...

    def saliency(self, rule: str) -> Tensor:
        """(R,) float32: attention that each row receives, averaged over heads.

        rule: "cls" from the class token (VisionZip, arXiv 2412.04467, section 3.2), "received"
            averaged over all queries of the segment, "auto" the first where there is a class token.

        Raises ValueError for "cls" without a class token.
        """
        ...

    def attention(self) -> list[Tensor]:
        """One (S, S) float32 map for each segment, averaged over heads."""
        ...


class SegmentHeads:
    """`Heads` of segments that are read from one attention module.

    has_class_token: whether the first token of each segment is a class token.
    prefix: number of leading tokens of each segment that are no rows: class tokens and registers
        that do not go on to the projector. They attend and are attended to.
    """

    def __init__(
        self, segments: Sequence[Segments], has_class_token: bool = False, prefix: int = 0
    ) -> None:
        self.segments, self.has_class_token, self.prefix = segments, has_class_token, prefix

    def keys(self) -> Tensor:
        """See `Heads.keys`."""
        parts = [part.key[:, :, self.prefix :].mean(1).flatten(0, 1) for part in self.segments]
        return torch.cat(parts)

    def saliency(self, rule: str) -> Tensor:
        """See `Heads.saliency`."""
        if rule == "cls" and not self.has_class_token:
            raise ValueError(
                "saliency='cls', but this vision encoder has no class token: expected 'received' "
                "or 'auto'"
            )
        from_class_token = self.has_class_token and rule != "received"
        parts = [s.from_class_token() if from_class_token else s.received() for s in self.segments]
        return torch.cat([part[:, self.prefix :].flatten() for part in parts])

    def attention(self) -> list[Tensor]:
        """See `Heads.attention`."""
        first = self.prefix
        return [maps[first:, first:] for part in self.segments for maps in part.maps()]
