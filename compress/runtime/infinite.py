"""LM-Infinite's cap on distances in attention that knows nothing of it.

A query q_i scores a near key k_j by R(p_i) q_i . R(p_j) k_j, and a sink by R(cap(p_i)) q_i . R(p_j)
k_j. Both are one product of twice the channels: queries [R(p_i) q_i, R(cap(p_i)) q_i], near keys
[k, 0], sinks [0, k]. Exact, and the cache holds ordinary keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.runtime.attention import taking
from compress.runtime.cache_state import Span
from positions import ChannelTable, LMInfinite, rerotate
from positions.channels import inverse_frequencies

CAPPED = "foveate_capped"
"""The argument of a decoder layer that brings a `Capped`."""


@dataclass(frozen=True)
class Far:
    """Which keys the newest tokens of a forward see, and as how far.

    rule: what was asked for. trained: positions that the model knows. positions: (B, q, K, 3)
    float64, of the newest tokens. rotary, channels: of the model, with K slots.
    """

    rule: LMInfinite
    trained: int
    positions: Tensor
    rotary: nn.Module
    channels: ChannelTable

    def sinks(self, span: Span) -> Tensor:
        """(B, length) bool: the first tokens of each row."""
        real = span.real(len(self.positions), self.positions.device)
        return real & (real.cumsum(1) <= self.rule.sinks)

    def seen(self, span: Span) -> Tensor:
        """(B, q, length) bool: keys that are sinks, or within the window of each newest token."""
        places: Tensor = span.places  # type: ignore[assignment]
        count = self.positions.shape[1]
        distance = places[:, -count:, None] - places[:, None]
        near = distance < self.rule.reach(self.trained)
        return near | self.sinks(span).to(near.device)[:, None]

    def towards(self, span: Span) -> Capped:
        """What the layers of a span are given."""
        return Capped(self.sinks(span), self)


@dataclass(frozen=True)
class Capped:
    """sinks: (B, keys) bool. far: of the forward."""

    sinks: Tensor
    far: Far

    def fold(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """query (B, heads, q, d) and key (B, key heads, n, d) with twice the channels."""
        far = self.far
        capped = far.rule.capped(far.positions, far.trained)
        inv_freq = inverse_frequencies(far.rotary)
        turned = rerotate(query, far.positions, capped, inv_freq, far.channels)
        missing = key.shape[2] - self.sinks.shape[1]  # a static cache has room for more
        sinks = torch.nn.functional.pad(self.sinks, (0, missing)).to(key.device)[:, None, :, None]
        keys = key.masked_fill(sinks, 0), key.masked_fill(~sinks, 0)
        return torch.cat([query, turned], -1), torch.cat(keys, -1)


def _cap(
    capped: Capped, query: Tensor, key: Tensor, value: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    return *capped.fold(query, key), value


capping = taking(CAPPED, _cap)
"""From an attention function to one that takes a `Capped` of those layers that bring one."""
