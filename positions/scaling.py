"""Frequencies for prompts longer than a model was trained for (Giraffe, arXiv 2308.10882).

Three rules that change `inv_freq`, and what each way of making a prompt fit costs. YaRN is an
option of a model's configuration, V2PE a position scheme of this package.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from positions.channels import inverse_frequencies
from positions.checks import Host
from positions.errors import PositionError
from positions.layout import Text
from positions.placement import Placement
from positions.schemes import DELTAS, FINEST

REACH = 2.0
"""How far beyond its window linear scaling takes a model that was not trained with it (Giraffe)."""


class Scaling(ABC):
    """A rule from the frequencies of a model to others. Subclasses are frozen dataclasses."""

    @abstractmethod
    def frequencies(self, inv_freq: Tensor) -> Tensor:
        """(C,) float64 from (C,): the frequencies in place of those of the model."""

    @contextmanager
    def on(self, rotary_emb: nn.Module) -> Iterator[None]:
        """While it lasts, a transformers rotary embedding turns at the scaled frequencies.

        Raises PositionError where it renews its frequencies itself ("dynamic", "longrope").
        """
        kind = getattr(rotary_emb, "rope_type", "default")
        if kind in ("dynamic", "longrope"):
            raise PositionError(
                f"{type(rotary_emb).__name__} has rope_type {kind!r}, which renews its frequencies "
                "in every forward: expected one with fixed frequencies"
            )
        own = inverse_frequencies(rotary_emb)
        if getattr(rotary_emb, "inv_freq", None) is not own:
            raise PositionError(f"{type(rotary_emb).__name__} has no inv_freq of its own")
        try:
            rotary_emb.inv_freq = self.frequencies(own).to(own)
            yield
        finally:
            rotary_emb.inv_freq = own


@dataclass(frozen=True)
class Linear(Scaling):
    """All frequencies divided by `factor`; the same as all positions divided by it."""

    factor: float

    def __post_init__(self) -> None:
        _positive("Linear", "factor", self.factor)

    def frequencies(self, inv_freq: Tensor) -> Tensor:
        return inv_freq.double() / self.factor


@dataclass(frozen=True)
class Power(Scaling):
    """Channel i of n is multiplied by (1 - i / n) ** exponent: the fastest stays, the slowest
    stretches most. Needs fine-tuning."""

    exponent: float = 0.5

    def __post_init__(self) -> None:
        _positive("Power", "exponent", self.exponent)

    def frequencies(self, inv_freq: Tensor) -> Tensor:
        order = inv_freq.double().argsort(descending=True, stable=True).argsort()
        return inv_freq.double() * (1 - order / len(inv_freq)) ** self.exponent


@dataclass(frozen=True)
class Truncated(Scaling):
    """The truncated basis: channels that turn once within `length` positions stay, those that turn
    less than an eighth stop, those between turn once in 16 lengths. Needs fine-tuning."""

    length: float

    def __post_init__(self) -> None:
        _positive("Truncated", "length", self.length)

    def frequencies(self, inv_freq: Tensor) -> Tensor:
        own, once = inv_freq.double(), 2 * math.pi / self.length
        between = torch.full_like(own, once / 16)
        slow = torch.where(own < once / 8, torch.zeros_like(own), between)
        return torch.where(own >= once, own, slow)


def _positive(rule: str, name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise PositionError(f"{rule}({name}={value!r}): expected a positive number")


def remedies(plan: Placement, config: Any, dtype: torch.dtype = torch.bfloat16) -> list[str]:
    """Ways to bring a plan within a model's window, each with what it costs, cheapest first.

    Empty if it fits. config: a transformers configuration. dtype: of cos and sin.
    """
    window = Host.of(config).window
    if not len(plan):
        return []
    end = max(float(plan.positions.amax()) + 1, float(plan.next_position))
    if end <= window:
        return []
    text = sum(item.tokens for item in plan.segments if isinstance(item, Text))
    visual = len(plan.dense_positions) - text
    found = []
    if visual and text < window:
        keep = (window - text) / visual
        found.append(f"a budget of {keep:.2g} with positions='compact': drops visual tokens")
        fits = [d for d in DELTAS if text + visual * d <= window and d >= FINEST.get(dtype, 0)]
        if fits:
            found.append(
                f"V2PE({Fraction(fits[0])}): visual tokens stand closer, text keeps its steps; "
                "best with a model trained for it"
            )
    factor = end / window
    reach = (
        "" if factor <= REACH else f"; untrained models follow to about {REACH:g}, not {factor:.2g}"
    )
    found.append(f"Linear({factor:.3g}): all distances shrink, those of words too{reach}")
    found.append(
        f"YaRN, factor {math.ceil(factor)} in the configuration: fast channels stay; changes short "
        "prompts as well"
    )
    found.append(f"Power(0.5) or Truncated({window}): fast channels stay; needs fine-tuning")
    found.append(
        f"LMInfinite({window}): no distance is larger than in training, no training is needed; "
        f"after the first tokens, only the last {window} positions are seen, attention runs on "
        "twice the channels, and the cache still holds all tokens"
    )
    return found
