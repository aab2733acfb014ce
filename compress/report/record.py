"""The record of one prefill under a compression, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.tokens import Grid, Reduction


@dataclass(frozen=True)
class PrefillRecord:
    """The visual inputs of a prompt and their reductions.

    Tensors stay on their device until a report, an overlay or an export needs them.

    method: the method's repr. grids: dense (T, H, W) of each visual input. first: the reductions
    before the language model. later: for each decoder layer that starts with fewer tokens, the
    reductions from the dense tokens to those. positions: (B, W, K, 3) float64 of the batch that
    enters the language model. rows, columns: (T,) int64, the places of its visual tokens.
    text: number of text tokens. cache_bytes: of keys and values after the prefill. config: the
    language model's configuration. reduce_ms, plan_ms: the times of reduction and planning.
    """

    method: str
    grids: tuple[Grid, ...]
    first: tuple[Reduction, ...]
    later: tuple[tuple[int, tuple[Reduction, ...]], ...]
    positions: Tensor
    rows: Tensor
    columns: Tensor
    text: int
    cache_bytes: int
    config: Any
    reduce_ms: float
    plan_ms: float

    @property
    def layers(self) -> tuple[int, ...]:
        """Decoder layers that start with fewer visual tokens than the layer before."""
        return tuple(layer for layer, _ in self.later)

    def positions_of(self, index: int) -> Tensor:
        """(M, K, 3) float64: positions of the tokens of visual input `index` that entered the
        language model."""
        counts = [reduction.count for reduction in self.first]
        start = sum(counts[:index])
        part = slice(start, start + counts[index])
        return self.positions[self.rows[part], self.columns[part]]

    def steps(self, index: int) -> list[tuple[str, Grid, Reduction]]:
        """Name, dense grid and reduction of visual input `index`: before the language model, and
        at every decoder layer that starts with fewer tokens.

        Raises IndexError if there is no such input.
        """
        if not 0 <= index < len(self.grids):
            raise IndexError(
                f"index is {index}: the last prefill had {len(self.grids)} visual inputs"
            )
        grid = self.grids[index]
        steps = [("before the language model", grid, self.first[index])]
        steps += [
            (f"from decoder layer {layer}", grid, reductions[index])
            for layer, reductions in self.later
        ]
        return steps

    def counts(self, depth: int) -> list[int]:
        """Visual tokens of the batch in each of `depth` decoder layers."""
        counts = [sum(reduction.count for reduction in self.first)] * depth
        for layer, reductions in self.later:
            counts[layer:] = [sum(r.count for r in reductions)] * (depth - layer)
        return counts


def cache_bytes(cache: Any) -> int:
    """Bytes of keys and values that a transformers cache holds."""
    parts: Sequence[Any] = [
        getattr(layer, name, None)
        for layer in getattr(cache, "layers", ())
        for name in ("keys", "values")
    ]
    tensors = [part for part in parts if isinstance(part, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
