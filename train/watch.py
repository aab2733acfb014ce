"""Where the time of a run goes, and how much goes through it."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import torch
from torch import nn


class Watch:
    """Adds up seconds by name, and counts.

    On a GPU the clock is read on the device's own time line (events), so that watching does not
    make the host wait; what is read is from the last `take` but for what is still under way.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.counts: dict[str, float] = defaultdict(float)
        self._began: dict[str, Any] = {}
        self._events: list[tuple[str, Any, Any]] = []
        self._gpu = torch.cuda.is_available()

    def start(self, name: str) -> None:
        """The clock of `name` runs."""
        self._began[name] = self._now()

    def stop(self, name: str) -> None:
        """The clock of `name` stands, if it ran."""
        began = self._began.pop(name, None)
        if began is None:
            return
        if self._gpu:
            self._events.append((name, began, self._now()))
        else:
            self.seconds[name] += self._now() - began

    def _now(self) -> Any:
        if not self._gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add(self, name: str, amount: float) -> None:
        """Count."""
        self.counts[name] += amount

    def take(self) -> tuple[dict[str, float], dict[str, float]]:
        """Seconds and counts since the last call."""
        if self._events:
            self._events[-1][2].synchronize()
        for name, first, last in self._events:
            self.seconds[name] += first.elapsed_time(last) / 1e3
        self._events = []
        seconds, counts = dict(self.seconds), dict(self.counts)
        self.seconds.clear()
        self.counts.clear()
        return seconds, counts

    def time_module(self, name: str, module: nn.Module) -> list[Any]:
        """Time every forward of a module; returns the handles of the hooks."""
        return [
            module.register_forward_pre_hook(lambda *_: self.start(name)),
            module.register_forward_hook(lambda *_: self.stop(name)),
        ]
