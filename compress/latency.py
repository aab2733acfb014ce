"""A budget in milliseconds: the most tokens that bring the first token in time on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

BUDGETS: tuple[int | float, ...] = (1, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Budgets that are timed, from one token to all."""
_SHARES = (0.0, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Their shares of the dense count; between them the time is taken to be linear."""

Timed = Callable[[int | float, Mapping[str, Tensor], int], float]
"""Milliseconds to the first token under a budget, of a call, the median of several runs."""


@dataclass(frozen=True)
class Fit:
    """The budget that a `Latency` became.

    budget: a count, or a share of the dense count. asked, predicted: milliseconds to the first
    token. measured: (budget, milliseconds) of the calibration.
    """

    budget: int | float
    asked: float
    predicted: float
    measured: tuple[tuple[int | float, float], ...]


@dataclass(frozen=True, eq=False)
class Latency:
    """A target for the time to the first token: encoding, reduction and prefill.

        with compress(model, "duet", budget=Latency(ms=200, calls=[inputs])) as c:
            model.generate(**inputs)
        print(c.report())  # asked for, predicted, and what it was

    ms: milliseconds that the slowest of `calls` may take. calls: what the processor gives for one
    or several typical prompts. repeats: runs of each call and budget, of which the median counts.

    The calls are run at five budgets, once for a model on a device in a dtype with a method, its
    options and the shapes of the calls. Under this budget a prefill waits for its device when it
    begins and when it ends, so that its time is known.

    Raises ValueError if `ms` is not above 0, `repeats` not at least 1, or there is no call.
    """

    ms: float
    calls: Sequence[Mapping[str, Tensor]]
    repeats: int = 3

    def __post_init__(self) -> None:
        if not self.ms > 0:
            raise ValueError(f"Latency: ms is {self.ms!r}; it must be above 0")
        if self.repeats < 1:
            raise ValueError(f"Latency: repeats is {self.repeats!r}; expected at least 1")
        if not self.calls:
            raise ValueError("Latency: calls is empty; expected the inputs of typical prompts")

    @property
    def shapes(self) -> tuple[tuple[tuple[str, tuple[int, ...]], ...], ...]:
        """The shapes of the tensors of each call."""
        return tuple(
            tuple((name, tuple(x.shape)) for name, x in call.items() if isinstance(x, Tensor))
            for call in self.calls
        )

    def times(self, first_token: Timed) -> tuple[float, ...]:
        """Milliseconds of the slowest call, for each of `BUDGETS`."""
        return tuple(
            max(first_token(budget, call, self.repeats) for call in self.calls)
            for budget in BUDGETS
        )

    def fit(self, times: Sequence[float]) -> Fit:
        """The largest budget whose predicted time is within the target. times: see `times`.

        Raises ValueError if even one token takes longer, and says how long.
        """
        # More tokens never take less time: what says so is noise.
        rising = list(accumulate(times, max))
        measured = tuple(zip(BUDGETS, times, strict=True))
        if self.ms < rising[0]:
            raise ValueError(
                f"Latency: ms is {self.ms:g}, and with the fewest tokens that the method can leave "
                f"the first token takes {rising[0]:.4g} ms here: expected at least that"
            )
        for place in range(1, len(BUDGETS)):
            low, high = rising[place - 1], rising[place]
            if self.ms < high:
                part = (self.ms - low) / (high - low)
                share = _SHARES[place - 1] + part * (_SHARES[place] - _SHARES[place - 1])
                return Fit(share or 1, self.ms, self.ms, measured)
        return Fit(1.0, self.ms, rising[-1], measured)
