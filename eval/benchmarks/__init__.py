"""The benchmarks. Each is a dataclass in its own file."""

from __future__ import annotations

from eval.benchmarks.embedded import Embedded
from eval.benchmarks.gqa import GQA
from eval.benchmarks.mmbench import MMBench
from eval.benchmarks.mme import MME
from eval.benchmarks.pope import POPE
from eval.benchmarks.scienceqa import ScienceQA
from eval.benchmarks.textvqa import TextVQA
from eval.benchmarks.videomme import VideoMME
from eval.samples import Benchmark

BENCHMARKS: dict[str, type[Benchmark]] = {
    cls.name: cls for cls in (MMBench, VideoMME, TextVQA, POPE, GQA, MME, ScienceQA, Embedded)
}

__all__ = [
    "BENCHMARKS",
    "GQA",
    "MME",
    "POPE",
    "Embedded",
    "MMBench",
    "ScienceQA",
    "TextVQA",
    "VideoMME",
]
