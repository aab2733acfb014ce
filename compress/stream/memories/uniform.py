"""Whole steps, as evenly spaced over the past as a stream allows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.stream.memories.base import MemoryPolicy, Older


@dataclass(frozen=True)
class Uniform(MemoryPolicy):
    """Evicts whole steps: that which leaves the smallest gap between its neighbours, the older of
    equals. The first step stays."""

    def keep(self, older: Older, count: int) -> Tensor:
        steps, sizes = older.step.unique_consecutive(return_counts=True)
        left, sizes_left = steps.tolist(), sizes.tolist()
        while sum(sizes_left) > count:
            ends = [*left[1:], older.steps]
            gaps = [end - start for start, end in zip([left[0], *left], ends, strict=False)]
            gaps[0] = older.steps + 1  # the first goes last
            worst = gaps.index(min(gaps))
            del left[worst], sizes_left[worst]
        kept = torch.isin(older.step, torch.tensor(left, dtype=torch.int64))
        return kept.nonzero().flatten()
