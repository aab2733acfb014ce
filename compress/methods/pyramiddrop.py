"""PyramidDrop: fewer visual tokens the deeper the layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from compress.budget import Allocation, Plan, schedule_layers
from compress.methods.base import Method, choose


@dataclass(frozen=True)
class PyramidDrop(Method):
    """PyramidDrop (CVPR 2025, arXiv 2410.17247, section 3; code Cooperx521/PyramidDrop).

    All tokens enter; at a quarter, a half and three quarters of the depth a share `ratio` of them
    is left, those with the highest attention from the `query` in the layer about to run. The
    published ratio 0.5 at layers 8, 16, 24 of 32 gives 270 of 576 on average.

    A budget sets the ratio (the paper has no rule). Where that would have to fall below `floor`,
    all drops move to earlier layers together, no earlier than needed; at layer 1 the ratio may fall
    to any value. Departures from the released code: positions are kept (it
    renumbers); nothing is truncated; any number of images and any padding. score: what ranks
    tokens instead of attention (`Method.score`).
    """

    in_llm_only: ClassVar[bool] = True

    layers: tuple[int | float, ...] = (0.25, 0.5, 0.75)
    ratio: float = 0.5
    query: str = "last"
    floor: float = 0.25
    score: str = "attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose(self, query=("last", "all", "salient"))
        for name in ("ratio", "floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"PyramidDrop: {name} is {getattr(self, name)}; must be in 0..1")

    @property
    def query_rows(self) -> str:
        return self.query

    def published(self, dense: int, depth: int) -> Allocation:
        """The allocation of `layers` and `ratio` as they are."""
        layers = schedule_layers(depth, self.layers)
        return self._at(dense, depth, layers, self.ratio)

    def _at(self, dense: int, depth: int, layers: tuple[int, ...], ratio: float) -> Allocation:
        schedule = tuple((layer, int(dense * ratio ** (i + 1))) for i, layer in enumerate(layers))
        return Allocation(dense, depth, dense, schedule)

    def plans(self, dense: int, depth: int) -> Iterator[Plan]:
        own = schedule_layers(depth, self.layers)
        first = own[0] if own else 1
        for start in range(first, 0, -1):
            moved = schedule_layers(depth, [max(1, layer * start // first) for layer in own])
            least = self.floor if start > 1 else 0.0

            def plan(
                count: int, layers: tuple[int, ...] = moved, least: float = least
            ) -> Allocation:
                return self._at(dense, depth, layers, max(least, count / dense))

            yield plan
