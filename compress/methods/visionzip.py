"""VisionZip: the most salient tokens, and merged ones spread over the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from compress.methods.base import Method, choose
from compress.methods.duet import Duet
from compress.tokens import Reduction, VisualTokens


@dataclass(frozen=True)
class VisionZip(Method):
    """VisionZip (arXiv 2412.04467, section 3.2; code dvlab-research/VisionZip).

    Dominant tokens are the most salient; contextual anchors are evenly spaced over the rest in
    raster order and every other token is merged into the anchor of most similar key. `contextual`
    is their share: 10 of 64, as published (54 + 10, 162 + 30 for 192, 108 + 20 for 128).

    merge: "mean", or "add" as released (anchor plus the mean of the others: conserves nothing).
    order: "raster", or "rank" as released (dominant tokens, then contextual ones).
    Departure: the class token is not kept (the released 54 includes it). A video
    is reduced frame by frame.
    """

    features_from: ClassVar[str] = "pre_projector"
    requires: ClassVar[frozenset[str]] = frozenset({"saliency", "keys"})
    per_frame: ClassVar[bool] = True

    contextual: float = 10 / 64
    merge: str = "mean"
    order: str = "raster"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose(self, merge=("mean", "add"), order=("raster", "rank"))
        if not 0 <= self.contextual <= 1:
            raise ValueError(f"VisionZip: contextual is {self.contextual}; it must be in 0..1")

    @property
    def ordered(self) -> bool:
        return self.order == "raster"

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        same = Duet(
            cluster="visionzip",
            contextual=round(keep * self.contextual),
            merge=self.merge,
            order=self.order,
        )
        return same.select(tokens, keep, generator)
