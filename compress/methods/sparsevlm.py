"""SparseVLM: text selects what is kept, and some of the rest is recycled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress import ops
from compress.budget import Allocation, Plan, schedule_layers
from compress.methods.base import Method
from compress.tokens import LayerTokens, Reduction

# tokens kept at the three layers of 576 (recycled ones come on top), by published budget
PUBLISHED = {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)}


@dataclass(frozen=True)
class SparseVLM(Method):
    """SparseVLM (ICML 2025, arXiv 2410.04417, section 3; code Gumpest/SparseVLMs, v1).

    All tokens enter. After decoder layers 2, 6 and 15 of 32 (so from 3, 7 and 16 on) the tokens
    with the highest attention from the text raters are kept. Of the rest, the best
    int(`recycle` * rest) + 1 are clustered by DPC-KNN into a tenth of them (int, plus one), and
    the means are kept too.

    counts: shares of the dense count at those layers; a budget scales them. The published lists
    (`PUBLISHED`) are kept tokens without the recycled ones, and their true mean is above the
    budget they are named for: 192 is (576 * 3 + 300 * 4 + 200 * 9 + 110 * 16) / 32 = 202.75 plus
    recycled. Here a budget is what layers see, recycled tokens included. One that the first full
    layers already exceed is met by dropping earlier. score: what ranks tokens instead of attention
    (`Method.score`).

    Departures from the released code: positions are kept; recycled tokens stand at their cluster's
    centre, in raster order (it appends them); means are weighted by size; density ties go to the
    lower index (it adds noise).
    """

    in_llm_only: ClassVar[bool] = True

    layers: tuple[int | float, ...] = (3 / 32, 7 / 32, 0.5)
    counts: tuple[float, ...] = (300 / 576, 200 / 576, 110 / 576)
    recycle: float = 0.3
    score: str = "attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.layers) != len(self.counts):
            raise ValueError(f"SparseVLM: layers {self.layers}, counts {self.counts} must pair up")
        if any(not 0 < share <= 1 for share in self.counts):
            raise ValueError(f"SparseVLM: counts must lie in (0, 1], got {self.counts}")
        if not 0 <= self.recycle <= 1:
            raise ValueError(f"SparseVLM: recycle is {self.recycle}; it must be in 0..1")

    @property
    def query_rows(self) -> str:
        return "salient"

    @property
    def scored_by(self) -> str:
        return "previous"

    def plans(self, dense: int, depth: int) -> Iterator[Plan]:
        own = schedule_layers(depth, self.layers)
        first = own[0] if own else 1
        # A model with fewer layers has room for the first pairs of the schedule alone.
        counts = self.counts[: len(own)] or self.counts
        least = min(counts)
        for start in range(first, 0, -1):
            moved = schedule_layers(depth, [max(1, layer * start // first) for layer in own])

            def plan(count: int, layers: tuple[int, ...] = moved) -> Allocation:
                scale = count / dense / least  # at count = dense every layer keeps all
                shares = [min(1.0, share * scale) for share in counts]
                schedule = tuple(
                    (layer, round(dense * share))
                    for layer, share in zip(layers, shares, strict=False)
                )
                return Allocation(dense, depth, dense, schedule)

            yield plan

    def salient_rows(self, text: Tensor, visual: Tensor, mask: Tensor | None = None) -> Tensor:
        return ops.text_raters(text, visual, mask)

    def clusters(self, rest: int) -> int:
        """Recycled tokens made of `rest` dropped ones."""
        if self.recycle == 0 or rest < 1:
            return 0
        return min(rest, int(self.recycle * rest) + 1) // 10 + 1

    def select_in_llm(
        self, tokens: LayerTokens, count: int, generator: torch.Generator | None
    ) -> Reduction:
        n = tokens.hidden.shape[1]
        fitting = (k for k in range(count, -1, -1) if k + self.clusters(n - k) <= count)
        kept = next(fitting, count)  # too few tokens for even one recycled cluster each
        made = count - kept
        ranked = ops.rank(tokens.need("scores"))
        if made == 0:
            return ops.prune(tokens.hidden, ranked[:, :kept], tokens.size)
        pool = min(n - kept, max(made, int(self.recycle * (n - kept)) + 1))
        recycled = ranked[:, kept : kept + pool]
        vectors = ops.gather(tokens.hidden, recycled)
        centres, row = ops.dpc_knn(vectors, made, made)
        assign = torch.full_like(tokens.anchor, -1).scatter(1, recycled, row + kept)
        anchor = torch.cat([ranked[:, :kept], recycled.gather(1, centres)], 1)
        return ops.merge(tokens.hidden, anchor, assign, size=tokens.size)
