"""The budget that brings the first token in time, from a short calibration on this machine."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from torch import Tensor, nn

from compress.defaults import METHOD
from compress.measure import measure
from compress.methods import Method, get_method
from vlm.families import adapter_of

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Budgets that are timed; between them the time is taken to be linear."""

# Measured times, by model; of each by what was run and where.
_TIMES: weakref.WeakKeyDictionary[nn.Module, dict[Any, tuple[float, ...]]] = (
    weakref.WeakKeyDictionary()
)


@dataclass(frozen=True)
class Fit:
    """What `Latency.fit` found.

    budget: a share of the dense count, for `compress`. predicted: milliseconds to the first token
    under it. measured: (share, milliseconds) of the calibration.
    """

    budget: float
    predicted: float
    measured: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Latency:
    """A target for the time to the first token: vision, reduction and prefill.

        fit = Latency(ms=200, calls=[inputs]).fit(model, "duet")
        with compress(model, "duet", fit.budget) as c: ...

    ms: milliseconds that the slowest of `calls` may take. calls: what the processor gives for one
    or several typical prompts. repeats: runs of each call and budget, of which the median counts.
    `measure(model, inputs, method, fit.budget)` says what it is in the end.

    Raises ValueError if `ms` is not above 0, or there is no call.
    """

    ms: float
    calls: Sequence[Mapping[str, Tensor]]
    repeats: int = 3

    def __post_init__(self) -> None:
        if not self.ms > 0:
            raise ValueError(f"Latency: ms is {self.ms!r}; it must be above 0")
        if not self.calls:
            raise ValueError("Latency: calls is empty; expected the inputs of typical prompts")

    def fit(self, model: nn.Module, method: str | Method = METHOD, **options: Any) -> Fit:
        """The largest budget whose predicted time is within the target.

        Times are measured once for a model on a device in a dtype, by method, options and shapes
        of the calls. options: further arguments of `compress`.

        Raises ValueError if even the smallest timed budget takes longer, and says how long.
        """
        times = self._times(model, get_method(method), options)
        # More tokens never take less time: what says so is noise.
        rising = list(accumulate(times, max))
        measured = tuple(zip(SHARES, times, strict=True))
        if self.ms < rising[0]:
            raise ValueError(
                f"Latency: ms is {self.ms:g}, and {method!r} at {SHARES[0]:.3g} of the tokens "
                f"takes {rising[0]:.4g} ms to the first token here: expected at least that"
            )
        for place in range(1, len(SHARES)):
            low, high = rising[place - 1], rising[place]
            if self.ms < high:
                part = (self.ms - low) / (high - low)
                share = SHARES[place - 1] + part * (SHARES[place] - SHARES[place - 1])
                return Fit(share, self.ms, measured)
        return Fit(1.0, rising[-1], measured)

    def _times(
        self, model: nn.Module, method: Method, options: Mapping[str, Any]
    ) -> tuple[float, ...]:
        adapter = adapter_of(model)
        lm = adapter.language_model
        shapes = tuple(
            tuple((name, tuple(x.shape)) for name, x in call.items() if isinstance(x, Tensor))
            for call in self.calls
        )
        where = (str(lm.device), str(lm.dtype), str(lm.config._attn_implementation))
        key = (repr(method), repr(sorted(options.items())), where, shapes, self.repeats)
        known = _TIMES.setdefault(adapter.core, {})
        if key not in known:
            known[key] = tuple(
                max(self._first(model, call, method, share, options) for call in self.calls)
                for share in SHARES
            )
        return known[key]

    def _first(
        self,
        model: nn.Module,
        call: Mapping[str, Tensor],
        method: Method,
        share: float,
        options: Mapping[str, Any],
    ) -> float:
        """Milliseconds to the first token of a call."""
        report = measure(model, call, method, share, new_tokens=1, repeats=self.repeats, **options)
        first: float = report.reduced.first  # type: ignore[assignment]
        return first
