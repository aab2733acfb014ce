"""Cascade clustering: DPC-KNN before the language model and again in it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from compress import ops
from compress.budget import Allocation, Plan, Schedule, schedule_layers
from compress.methods.base import Method
from compress.ops import windows
from compress.tokens import LayerTokens, Reduction, VisualTokens


@dataclass(frozen=True)
class Cascade(Method):
    """Cascade clustering of PPE (ICLR 2026, section 3; code MouxiaoHuang/PPE; DPC-KNN of
    Chat-UniVi, arXiv 2311.08046).

    Pre-LLM, tokens are clustered by DPC-KNN, each frame (temporal grid) of a video alone. In-LLM,
    they are clustered again to `ratio` of their number at layers 11, 23 and 35 of 36 (fractions of
    any depth), each frame alone. Rows are size-weighted means, stand at the centre of their cluster
    and are in raster order.

    pre_llm: False leaves the input dense and lets the budget set the ratio (the published "within"
    row). in_llm: False clusters before the language model only.

    Departures from the released code: unions are real (it keeps one child's positions; here
    `Reduction.then` knows every token), means are weighted by size (it averages averages, in the
    features' type), density ties go to the lower index (it adds noise), rows are in raster order
    (it emits them by score), images too are clustered in the LLM (it refuses them).
    """

    per_frame: ClassVar[bool] = True
    in_llm_needs: ClassVar[frozenset[str]] = frozenset()

    pre_llm: bool = True
    in_llm: bool = True
    neighbours: int = 5
    layers: tuple[int | float, ...] = (11 / 36, 23 / 36, 35 / 36)
    ratio: float = 0.45

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio <= 1:
            raise ValueError(f"Cascade: ratio is {self.ratio}; it must be in (0, 1]")
        if self.neighbours < 1:
            raise ValueError(f"Cascade: neighbours is {self.neighbours}; it must be at least 1")
        if not (self.pre_llm or self.in_llm):
            raise ValueError("Cascade: pre_llm and in_llm are both False, nothing is left to do")

    def _pairs(self, keep: int, depth: int, ratio: float) -> Schedule:
        pairs, count = [], keep
        for layer in schedule_layers(depth, self.layers) if self.in_llm else ():
            count = math.ceil(count * ratio - 1e-9)
            pairs.append((layer, count))
        return tuple(pairs)

    def schedule(self, keep: int, depth: int) -> Schedule:
        return self._pairs(keep, depth, self.ratio)

    def plans(self, dense: int, depth: int) -> Iterator[Plan]:
        if self.pre_llm:
            yield from super().plans(dense, depth)
            return

        def plan(count: int) -> Allocation:
            return Allocation(dense, depth, dense, self._pairs(dense, depth, count / dense))

        yield plan

    def _cluster(self, tokens: VisualTokens, keep: int) -> Reduction:
        centres, assign = ops.dpc_knn(tokens.features, keep, self.neighbours)
        return ops.merge(tokens.features, centres, assign, size=tokens.size)

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        return self._cluster(tokens, keep)

    def select_in_llm(
        self, tokens: LayerTokens, count: int, generator: torch.Generator | None
    ) -> Reduction:
        b, n, _ = tokens.hidden.shape
        t, h, w = tokens.grid
        whole = VisualTokens(tokens.hidden, (1, 1, n), size=tokens.size)
        if t == 1:
            return self._cluster(whole, count)
        frame = tokens.anchor // (h * w)
        lengths = torch.zeros(b, t, dtype=torch.int64, device=frame.device)
        sizes = lengths.scatter_add_(1, frame, torch.ones_like(frame)).tolist()
        if any(size != sizes[0] for size in sizes):
            raise ValueError(
                "tokens per frame differ between the samples of a batch: hand over samples of "
                "equal layout together"
            )
        runs, start = [], 0
        for size, share in zip(sizes[0], windows.deal(count, sizes[0]), strict=True):
            if size:
                runs.append(windows.Run(start, (1, 1, size), share))
            start += size
        return windows.by_run(whole, runs, self._cluster)
