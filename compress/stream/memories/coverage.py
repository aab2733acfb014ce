"""Foveate's coverage over the whole memory: appearance, place and time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.methods.foveate import Foveate
from compress.ops import greedy
from compress.stream.memories.base import MemoryPolicy, Older
from compress.tokens import VisualTokens


@dataclass(frozen=True)
class Coverage(MemoryPolicy):
    """The tokens that best stand for all that are held, as `Foveate` chooses them in a picture.

    What must be covered is a mixture of all tokens alike, those that receive attention in the
    vision encoder, and those far from the mean feature. A token stands for another as far as both
    look alike and are near in the picture and in time, so what stays still is kept once in a while,
    and what is new is kept.

    even, salient, distinct, appearance: as in `Foveate`. place: distance in the grid, in tokens,
    and time: in steps, at which similarity falls to exp(-1/2); None ignores it.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"features", "saliency"})

    even: float = 1.0
    salient: float = 2.0
    distinct: float = 1.0
    appearance: float = 0.35
    place: float | None = 4.0
    time: float | None = 32.0

    def __post_init__(self) -> None:
        for name in ("place", "time"):
            value = getattr(self, name)
            self.check(name, value is None or value > 0, value, "a positive number or None")
        self._method()

    def _method(self) -> Foveate:
        parts = (self.even, self.salient, self.distinct)
        return Foveate(*parts, appearance=self.appearance, place=None, merge=False)

    def keep(self, older: Older, count: int) -> Tensor:
        features = older.fields["features"][None]
        saliency = older.fields.get("saliency")
        saliency = None if saliency is None else saliency[None]
        tokens = VisualTokens(features, (1, 1, len(older)), saliency=saliency)
        method = self._method()
        near = method.kernel(tokens, count)[0]
        for reach, axes in ((self.time, slice(0, 1)), (self.place, slice(1, 3))):
            if reach is not None:
                place = older.places[:, axes].to(near)
                near = near * (-torch.cdist(place, place).square() / (2 * reach**2)).exp()
        weight = method.weights(tokens)[0]
        return greedy.cover((near * weight[:, None])[None], count)[0].sort().values.cpu()
