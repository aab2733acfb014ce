"""Time by name."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Adds up milliseconds by name.

    `exact` waits for the CUDA device at every start and stop, so that the time of kernels counts
    for the interval that launched them. It is off by default, as waiting takes time. `tick`: what
    gives the time, in seconds; a benchmark on a busy machine takes `time.process_time`. `over`: a
    prefill has ended. first: milliseconds that the last prefill took from pixels to the first
    token's logits, where visual inputs were encoded in this thread.
    """

    def __init__(self) -> None:
        self.exact = False
        self.tick = time.perf_counter
        self.over = False
        self.first = 0.0
        self.totals: dict[str, float] = {}
        self._encoded = 0.0
        self._began: dict[str, float] = {}

    def restart(self) -> None:
        """Reset the times of the reduction, and of what is encoded before the forward, if the last
        prefill is over."""
        if self.over:
            self.totals.update(reduce=0.0, plan=0.0)
            self._encoded = 0.0
            self.over = False

    @contextmanager
    def encoding_first(self) -> Iterator[None]:
        """Count the time of a block, which encodes before the forward, for `first`."""
        began = self.now()
        yield
        self._encoded += self.now() - began

    def reached(self, began: float) -> None:
        """A prefill whose forward began at a time has ended; see `first`."""
        self.first = self.now() - began + self._encoded

    def now(self) -> float:
        """Milliseconds since a fixed time."""
        if self.exact and torch.cuda.is_available():
            torch.cuda.synchronize()
        return self.tick() * 1e3

    def start(self, name: str) -> None:
        """Begin an interval of `name`."""
        self._began[name] = self.now()

    def stop(self, name: str) -> None:
        """End the interval of `name` and add it to its total."""
        self.add(name, self.now() - self._began.pop(name))

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add the time of a block to the total of `name`. Several threads may be in one."""
        began = self.now()
        try:
            yield
        finally:
            self.add(name, self.now() - began)

    def add(self, name: str, milliseconds: float) -> None:
        """Add to the total of `name`."""
        self.totals[name] = self.totals.get(name, 0.0) + milliseconds
