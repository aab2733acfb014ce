"""Budgets that look at the visual inputs: counts that differ from picture to picture."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

from compress.budget import resolve_budget


@dataclass(frozen=True)
class Coverage:
    """As many tokens of an input enter the language model as cover `share` of its weight: few of a
    blank page, many of a table.

    Weight and cover are those of `foveate`, without the question: what is salient and distinct, by
    its own options if it is the method, else by the default ones. Raises TypeError or ValueError
    unless 0 < share <= 1.
    """

    share: float

    def __post_init__(self) -> None:
        if isinstance(self.share, bool) or not isinstance(self.share, Real):
            raise TypeError(f"Coverage: share is {self.share!r}; expected a number in (0, 1]")
        if not 0 < self.share <= 1:
            raise ValueError(f"Coverage: share is {self.share!r}; it must be in (0, 1]")

    kind: ClassVar[str] = "coverage"

    def __str__(self) -> str:
        return f"{self.kind}:{self.share!r}"

    @property
    def amount(self) -> float:
        """The share."""
        return self.share

    def counts(self, gains: Sequence[Sequence[float]], fixed: Sequence[int]) -> list[int]:
        """Tokens of each input. gains: what each further token adds, out of 1. fixed: not read."""
        counts = []
        for own in gains:
            covered, count = 0.0, 0
            # Rounding can leave the sum of all a little below 1.
            while count < len(own) and covered < self.share * (1 - 1e-6):
                covered += own[count]
                count += 1
            counts.append(max(1, count))
        return counts


@dataclass(frozen=True)
class Shared:
    """A mean over the visual inputs of one call (images of a prompt, rows of a batch), given out by
    what a further token of each adds.

    What `compress(budget=budget)` lets enter of all inputs together is spent, exactly, where it
    covers most; an input keeps at least one token. An input's share depends on what is beside it in
    the call. Raises TypeError or ValueError for a budget that cannot be.
    """

    budget: int | float

    def __post_init__(self) -> None:
        resolve_budget(self.budget, 2**31, "Shared: budget")

    kind: ClassVar[str] = "shared"

    def __str__(self) -> str:
        return f"{self.kind}:{self.budget!r}"

    @property
    def amount(self) -> int | float:
        """The budget."""
        return self.budget

    def counts(self, gains: Sequence[Sequence[float]], fixed: Sequence[int]) -> list[int]:
        """Tokens of each input, sum(fixed) in all. gains: what each further token adds, out of 1,
        descending. fixed: what the same budget leaves of each."""
        counts = [1] * len(gains)
        queue = [(-own[1], number) for number, own in enumerate(gains) if len(own) > 1]
        heapq.heapify(queue)
        for _ in range(sum(fixed) - len(gains)):
            _, number = heapq.heappop(queue)
            counts[number] += 1
            if counts[number] < len(gains[number]):
                heapq.heappush(queue, (-gains[number][counts[number]], number))
        return counts


Adaptive = Coverage | Shared
Budget = int | float | Coverage | Shared
"""What a model's settings hold; `compress` takes a `Latency` too."""
