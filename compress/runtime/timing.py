"""Times to the first token on this machine, for budgets in milliseconds."""

from __future__ import annotations

import statistics
import weakref
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from compress.latency import Fit, Latency, Timed
from compress.runtime.settings import Settings

# Measured times, by model; of each by what was run and where.
_TIMES: weakref.WeakKeyDictionary[nn.Module, dict[Any, tuple[float, ...]]] = (
    weakref.WeakKeyDictionary()
)


def fit_latency(target: Latency, settings: Settings, first_token: Timed) -> Fit:
    """The budget that brings the first token in time; times that are known are not taken again.

    Raises ValueError if even the smallest budget takes longer than the target.
    """
    known = _TIMES.setdefault(settings.adapter.core, {})
    lm = settings.adapter.language_model
    options = (
        settings.method,
        settings.positions,
        settings.slots,
        settings.probe,
        settings.keep_phase,
    )
    where = (lm.device, lm.dtype, settings.attention_implementation, settings.calibration)
    key = (repr(options), where, target.shapes, target.repeats)
    if key not in known:
        drawn = None if settings.generator is None else settings.generator.get_state()
        try:
            known[key] = target.times(first_token)
        finally:  # what is drawn later does not depend on the calibration
            if settings.generator is not None and drawn is not None:
                settings.generator.set_state(drawn)
    return target.fit(known[key])


def first_token(compression: Any, call: Mapping[str, Tensor], repeats: int) -> float:
    """Milliseconds to the first token of a call under a compression that is timed: the median of
    some runs after one that is left out."""
    times: list[float] = []
    for _ in range(repeats + 1):
        compression.settings.adapter.model.generate(
            **call, max_new_tokens=1, min_new_tokens=1, do_sample=False
        )
        times.append(compression.clock.first)
    return statistics.median(times[1:])
