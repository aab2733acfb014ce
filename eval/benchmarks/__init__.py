"""The benchmarks, each a dataclass in a file of its own."""

from __future__ import annotations

from eval.benchmarks.embedded import Embedded
from eval.samples import Benchmark

BENCHMARKS: dict[str, type[Benchmark]] = {cls.name: cls for cls in (Embedded,)}

__all__ = ["BENCHMARKS", "Embedded"]
