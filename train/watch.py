"""Time and counts of a run, by name."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import torch
from torch import nn


class Watch:
    """Adds up seconds and counts by name.

    On a GPU, times are read from CUDA events, so that timing does not synchronize the host.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.counts: dict[str, float] = defaultdict(float)
        self._began: dict[str, Any] = {}
        self._events: list[tuple[str, Any, Any]] = []
        self._gpu = torch.cuda.is_available()

    def start(self, name: str) -> None:
        """Start the clock of `name`."""
        self._began[name] = self._now()

    def stop(self, name: str) -> None:
        """Stop the clock of `name`, if it is running."""
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
        """Add to the count of `name`."""
        self.counts[name] += amount

    def take(self) -> tuple[dict[str, float], dict[str, float]]:
        """Seconds and counts since the last call. Waits for the last event on a GPU."""
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
        """Time every forward of a module. Returns the handles of the hooks."""
        return [
            module.register_forward_pre_hook(lambda *_: self.start(name)),
            module.register_forward_hook(lambda *_: self.stop(name)),
        ]
