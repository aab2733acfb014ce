"""Random tokens of the whole past, each as likely as any other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from compress.stream.memories.base import MemoryPolicy, Older, largest


@dataclass(frozen=True)
class Random(MemoryPolicy):
    """Keeps the tokens with the largest of the numbers drawn for each: a uniform sample without
    replacement of all that was seen (reservoir sampling)."""

    def keep(self, older: Older, count: int) -> Tensor:
        return largest(older.draw, count)
