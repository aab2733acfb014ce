"""The base class of memory policies: which visual tokens of a stream stay in the cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from compress.errors import StreamError


def _none() -> Tensor:
    raise StreamError("attention is not known here: expected a stream that measures it")


@dataclass(frozen=True)
class Older:
    """The N visual tokens of a stream that a policy may evict, by age; never the recent steps.

    step, cell: (N,) int64, step and raster index in its grid. draw: (N,) float64 in [0, 1), drawn
    once for each token. grid: (h, w). steps: number of steps seen so far. fields: (N, ...) what
    `MemoryPolicy.needs` names. group: number of the group of layers, of `groups` in all.
    attention: called, gives (N,) float32, how much attention a question that names nothing pays to
    each token in the layers of this group.
    """

    step: Tensor
    cell: Tensor
    draw: Tensor
    grid: tuple[int, int]
    steps: int
    fields: dict[str, Tensor] = field(default_factory=dict)
    group: int = 0
    groups: int = 1
    attention: Callable[[], Tensor] = _none

    def __len__(self) -> int:
        return len(self.step)

    @property
    def places(self) -> Tensor:
        """(N, 3) int64: step, row and column."""
        width = self.grid[1]
        return torch.stack([self.step, self.cell // width, self.cell % width], 1)


class MemoryPolicy(ABC):
    """Chooses the tokens that stay. Subclasses are frozen dataclasses, one in one short file.

    needs: fields of the visual tokens that it reads: "features" (D), "saliency", "keys"
        (as in `VisualTokens`) and "change", how little of a token was in its neighbourhood one step
        before or after: 1 - largest cosine, 0 to 2; the first step's is 2.
    holds_older: False if it keeps nothing but the recent steps.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    holds_older: ClassVar[bool] = True

    @abstractmethod
    def keep(self, older: Older, count: int) -> Tensor:
        """(M,) int64, sorted: at most `count` of the N tokens. 0 < count < N."""

    def groups(self, depth: int) -> Sequence[int]:
        """The group of each decoder layer, from 0; layers of one group keep the same tokens."""
        return [0] * depth

    def check(self, name: str, good: bool, value: object, expected: str) -> None:
        """StreamError unless `good`."""
        if not good:
            raise StreamError(f"{type(self).__name__}: {name} is {value!r}; expected {expected}")


def largest(score: Tensor, count: int) -> Tensor:
    """(count,) int64, sorted: the highest scores, the earlier token of equals."""
    order = score.argsort(descending=True, stable=True)
    return order[:count].sort().values.cpu()
