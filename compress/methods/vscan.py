"""VScan: tokens salient near and far, merging, and one drop in the language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from compress import ops
from compress.budget import Schedule, schedule_layers
from compress.methods.base import Method
from compress.tokens import Reduction, VisualTokens


@dataclass(frozen=True)
class VScan(Method):
    """VScan (arXiv 2505.22654, section 4; code Tencent/SelfEvolvingAgent).

    Half of the tokens (`local`) are the most salient of each `window` x `window` window by a
    shallow layer (6th of CLIP's 24), the others the most salient of the rest by the scoring layer;
    every other token is averaged into the kept one of most similar projected feature. In the
    language model a third is left from half of the depth on, by attention from the last text token:
    96, then 32, for an average of 64.

    Where `shallow_saliency` is missing, `saliency` is used. If the windows do not divide the count,
    their next best tokens are taken in order of saliency. A video is reduced frame by
    frame. score: what ranks tokens in the language model (`Method.score`).
    """

    requires: ClassVar[frozenset[str]] = frozenset({"saliency"})
    wants: ClassVar[frozenset[str]] = frozenset({"shallow_saliency"})
    per_frame: ClassVar[bool] = True

    local: float = 0.5
    window: int = 6
    layer: int | float = 0.5
    ratio: float = 1 / 3
    score: str = "attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("local", "ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"VScan: {name} is {getattr(self, name)}; it must be in 0..1")
        if self.window < 1:
            raise ValueError(f"VScan: window is {self.window}; it must be at least 1")

    def schedule(self, keep: int, depth: int) -> Schedule:
        layers = schedule_layers(depth, (self.layer,))
        return tuple((layer, round(keep * self.ratio)) for layer in layers)

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        saliency = tokens.need("saliency")
        shallow = saliency if tokens.shallow_saliency is None else tokens.shallow_saliency
        near = self._by_window(tokens, shallow, int(keep * self.local))
        left = ops.wide(saliency).scatter(1, near, -torch.inf)
        index = torch.cat([near, ops.top(left, keep - near.shape[1])], 1)
        return ops.merge(tokens.features, index, ops.to_nearest(tokens.features, index))

    def _by_window(self, tokens: VisualTokens, saliency: torch.Tensor, count: int) -> torch.Tensor:
        """(B, count): the best token of every window, then the second best of every window, ..."""
        _, row, column = tokens.grid_cells.unbind(1)
        across = -(-tokens.grid[2] // self.window)
        window = row // self.window * across + column // self.window
        order = ops.rank(saliency)  # then a stable sort by window keeps that order in each
        grouped = order.gather(1, window[order].sort(dim=1, stable=True).indices)
        start = torch.searchsorted(
            window.sort().values, torch.arange(int(row.numel()), device=window.device)
        )
        place = torch.arange(tokens.count, device=window.device) - start[window[grouped]]
        nth = torch.empty_like(order).scatter_(1, grouped, place)
        best = nth.gather(1, order).sort(dim=1, stable=True).indices
        return order.gather(1, best)[:, :count]
