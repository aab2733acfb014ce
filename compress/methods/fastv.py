"""FastV: after two layers, half of the visual tokens are worth little."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from compress.budget import Allocation, Plan
from compress.methods.base import Method


@dataclass(frozen=True)
class FastV(Method):
    """FastV (ECCV 2024, arXiv 2403.06764, section 4; code pkunlp-icler/FastV).

    All tokens enter; from decoder layer `layer` on, only those with the highest attention from the
    last token in layer - 1 are left. The released code needs batch 1 and the
    image's place as a constant; this does not.

    A budget that `layer` full layers already exceed is met by dropping earlier (layer 1 at the
    earliest), which the paper does not do. score: what ranks tokens instead of attention
    (`Method.score`).
    """

    in_llm_only: ClassVar[bool] = True

    layer: int = 2
    score: str = "attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer < 1:
            raise ValueError(f"FastV: layer is {self.layer}; it must be at least 1")

    @property
    def scored_by(self) -> str:
        return "previous"

    def plans(self, dense: int, depth: int) -> Iterator[Plan]:
        for layer in range(min(self.layer, depth - 1), 0, -1):

            def plan(count: int, layer: int = layer) -> Allocation:
                return Allocation(dense, depth, dense, ((layer, count),))

            yield plan
        if depth == 1:
            yield lambda count: Allocation(dense, depth, dense)
