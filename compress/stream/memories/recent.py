"""The newest steps and nothing else (SimpleStream, arXiv 2604.02317)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.stream.memories.base import MemoryPolicy, Older


@dataclass(frozen=True)
class Recent(MemoryPolicy):
    """Only the recent steps, whatever the budget. With `instant=True` in `watch` this is
    SimpleStream, whose frames have never seen what was before them."""

    holds_older: ClassVar[bool] = False

    def keep(self, older: Older, count: int) -> Tensor:
        return torch.zeros(0, dtype=torch.int64)
