"""Scores by layer: age in shallow layers, attention in deep ones (HERMES, arXiv 2601.14724)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from compress.stream.memories.base import MemoryPolicy, Older, largest


@dataclass(frozen=True)
class Scored(MemoryPolicy):
    """In shallow layers the newest tokens stay, in deep ones those that a question which names
    nothing attends to, in the layers between those with the largest mixture.

    HERMES mixes layer by layer, smooths scores over layers and adds a summary token of what was
    evicted; here each of three groups of layers has one score, and nothing is added. Models whose
    steps stand between words keep one set of tokens in all layers, by the mixture.

    decay: how fast the score of age falls, exp(-decay * steps). shallow, deep: shares of the
    layers. recency: share of age in the mixture.
    """

    decay: float = 0.01
    shallow: float = 0.1
    deep: float = 0.3
    recency: float = 0.45

    def __post_init__(self) -> None:
        self.check("decay", self.decay >= 0, self.decay, "0 or more")
        self.check("recency", 0 <= self.recency <= 1, self.recency, "0 to 1")
        good = min(self.shallow, self.deep) > 0 and self.shallow + self.deep < 1
        self.check("shallow, deep", good, (self.shallow, self.deep), "shares that sum to below 1")

    def groups(self, depth: int) -> Sequence[int]:
        first, last = math.ceil(self.shallow * depth), depth - math.ceil(self.deep * depth)
        if not 0 < first < last < depth:
            return [0] * depth
        return [0 if layer < first else 2 if layer >= last else 1 for layer in range(depth)]

    def keep(self, older: Older, count: int) -> Tensor:
        age = (older.steps - 1 - older.step).double()
        recent = (-self.decay * age).exp()
        role = older.group if older.groups > 1 else 1
        if role == 0:
            return largest(recent, count)
        attention = older.attention().double().cpu()
        share = self.recency if role == 1 else 0.0
        score = share * recent / recent.sum() + (1 - share) * attention / attention.sum()
        return largest(score, count)
