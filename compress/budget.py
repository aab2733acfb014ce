"""Budgets: how many visual tokens each decoder layer sees, and their mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral, Real


def resolve_budget(budget: int | float, dense: int, name: str = "budget") -> float:
    """The mean number of visual tokens asked for: an int is a count, a float in (0, 1] a fraction.

    Raises TypeError if `budget` is not a number (bool is not one), ValueError if it is NaN, not
    positive, a float above 1 or a count above `dense`. name: of the argument, for these errors.
    """
    if isinstance(dense, bool) or not isinstance(dense, Integral) or dense < 1:
        raise ValueError(f"dense must be a positive count of tokens, got {dense!r}")
    if isinstance(budget, bool) or not isinstance(budget, Real):
        raise TypeError(f"{name} must be an int (count) or a float in (0, 1], got {budget!r}")
    if isinstance(budget, Integral):
        if not 1 <= budget <= dense:
            raise ValueError(f"{name} is {budget} tokens; it must be 1..{dense} (the dense count)")
        return float(budget)
    if not 0.0 < float(budget) <= 1.0:  # also refuses NaN
        raise ValueError(
            f"{name} is {budget!r}; a float is a fraction of the dense count, in (0, 1]. "
            "Give an int for a count of tokens"
        )
    return float(budget) * dense


Schedule = tuple[tuple[int, int], ...]
"""Pairs (layer, count): from decoder layer `layer` on, `count` visual tokens are left."""


@dataclass(frozen=True)
class Allocation:
    """What a budget becomes: how many visual tokens each decoder layer sees.

    Args:
        dense: visual tokens of the input before reduction.
        depth: decoder layers.
        keep: visual tokens that enter the language model.
        schedule: pairs (layer, count): `count` tokens are left from decoder layer `layer` on
            (0-based, before that layer runs). Layers ascend from 1, counts never grow. Pairs that
            change nothing are left out, so that keep-all has an empty schedule.

    Raises:
        ValueError: a number out of range, or a schedule that is not as described.
    """

    dense: int
    depth: int
    keep: int
    schedule: Schedule = ()

    def __post_init__(self) -> None:
        if not 1 <= self.keep <= self.dense:
            raise ValueError(f"keep is {self.keep}; it must be 1..{self.dense} (the dense count)")
        if self.depth < 1:
            raise ValueError(f"depth is {self.depth}; a language model has at least one layer")
        layers = [layer for layer, _ in self.schedule]
        counts = [count for _, count in self.schedule]
        if layers != sorted(set(layers)) or any(layer < 1 for layer in layers):
            raise ValueError(
                f"schedule {self.schedule}: layers must ascend and start at 1 or later"
            )
        if counts != sorted(counts, reverse=True) or any(count < 0 for count in counts):
            raise ValueError(f"schedule {self.schedule}: counts must not grow nor be negative")
        pairs, before = [], self.keep
        for layer, count in self.schedule:
            if layer >= self.depth:
                raise ValueError(
                    f"schedule {self.schedule}: layer {layer}, but the model has "
                    f"{self.depth} layers"
                )
            if count > self.keep:
                raise ValueError(
                    f"schedule {self.schedule}: {count} tokens from layer {layer} on, but "
                    f"{self.keep} enter the language model"
                )
            if count < before:
                pairs.append((layer, count))
                before = count
        object.__setattr__(self, "schedule", tuple(pairs))

    @property
    def counts(self) -> tuple[int, ...]:
        """Visual tokens in each decoder layer, `depth` numbers."""
        counts = [self.keep] * self.depth
        for layer, count in self.schedule:
            counts[layer:] = [count] * (self.depth - layer)
        return tuple(counts)

    @property
    def average(self) -> float:
        """N_avg = (1 / L) sum_l N_l, the budget that this allocation spends."""
        return sum(self.counts) / self.depth


Plan = Callable[[int], Allocation]
"""A way to turn a count into an allocation (see `Method.plans`)."""


def nearest(plan: Plan, dense: int, target: float) -> Allocation:
    """The allocation plan(count), count in 1..dense, whose average is nearest to `target`.

    `plan(count).average` must not fall as count grows. Of two that are equally near, the smaller.
    """
    low, high = 1, dense
    while low < high:  # first count whose average reaches the target
        middle = (low + high) // 2
        if plan(middle).average < target:
            low = middle + 1
        else:
            high = middle
    candidates = [plan(count) for count in (low - 1, low) if count >= 1]
    return min(candidates, key=lambda a: (abs(a.average - target), a.average))


def solve(plans: Iterable[Plan], dense: int, target: float) -> Allocation:
    """The nearest allocation of the first plan that can reach `target`, else of all plans.

    plans: the method's own first, then those that depart from it more and more. Raises ValueError
    if there is none.
    """
    best: Allocation | None = None
    for plan in plans:
        candidate = nearest(plan, dense, target)
        if plan(1).average <= target <= plan(dense).average:
            return candidate
        if best is None or abs(candidate.average - target) < abs(best.average - target):
            best = candidate
    if best is None:
        raise ValueError("a method must offer at least one plan")
    return best


def schedule_layers(depth: int, positions: Iterable[int | float]) -> tuple[int, ...]:
    """Decoder layers of a schedule: an int is a layer, a float a fraction of `depth`, rounded down.

    Layers are at least 1 (one layer sees all kept tokens), and each later than the one before;
    those that do not exist are left out, so that the schedule of a shallow model is shorter. Raises
    ValueError for a negative one.
    """
    layers: list[int] = []
    for position in positions:
        if position < 0:
            raise ValueError(
                f"layer is {position!r}; a layer, or share of the depth, is not negative"
            )
        layer = math.floor(position * depth + 1e-9) if isinstance(position, float) else position
        layer = max(layer, layers[-1] + 1 if layers else 1)
        if layer < depth:
            layers.append(layer)
    return tuple(layers)
