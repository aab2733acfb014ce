"""Counts on a CPU what an operation costs on a GPU: kernel launches and reads of values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from compress.ops import greedy, similarity

EMPTY = (
    "empty",
    "new_empty",
    "empty_like",
    "empty_strided",
    "detach",
    "alias",
    "lift_fresh",
    "promote_types",
)
LOOKS = ("item", "tolist", "__bool__", "__int__", "__float__", "cpu", "numpy", "nonzero")


class Launches(TorchDispatchMode):
    """Counts the operations that would launch a kernel: not views, and not empty memory."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if not function.is_view and name not in EMPTY:
            self.by_name[name] += 1
        return function(*args, **(kwargs or {}))

    @property
    def count(self) -> int:
        return sum(self.by_name.values())


class Kernels:
    """Stands for the Triton kernels: one launch each, computed by the eager loops."""

    def __init__(self, launches: Launches) -> None:
        self.launches = launches

    def _once(self, name: str, loop: Any, table: torch.Tensor, count: int) -> torch.Tensor:
        self.launches.by_name[name] += 1
        with _disable_current_modes(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(greedy, "_fused", lambda table: None)
            index: torch.Tensor = loop(table, count)
        return index

    def volume(self, kernel: torch.Tensor, count: int) -> torch.Tensor:
        return self._once("triton volume", greedy.volume, kernel, count)

    def cover(self, table: torch.Tensor, count: int) -> torch.Tensor:
        return self._once("triton cover", greedy._cover_all, table, count)


@contextmanager
def as_on_gpu(patch: pytest.MonkeyPatch) -> Iterator[Launches]:
    """Takes the ways that are for a GPU, and counts launches."""
    launches = Launches()
    with patch.context() as own, launches:
        own.setattr(similarity, "on_gpu", lambda x: True)
        own.setattr(greedy, "_fused", lambda table: Kernels(launches))
        yield launches


@contextmanager
def looks(patch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts what would make the host wait for a GPU."""
    counts: Counter[str] = Counter()

    def counted(name: str) -> Any:
        own = getattr(torch.Tensor, name)

        def call(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return own(self, *args, **kwargs)

        return call

    with patch.context() as own:
        for name in LOOKS:
            own.setattr(torch.Tensor, name, counted(name))
        yield counts
