"""The record of one prefill under a compression, as plain values."""

from __future__ import annotations

import math
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

    method: the method's repr. reads_question: whether text of the prompt may have decided which
    tokens enter the language model. grids: dense (T, H, W) of each visual input. first: the
    reductions before the language model. later: for each decoder layer that starts with fewer
    tokens, the reductions from the dense tokens to those. features: (T, D), the visual tokens that
    enter the language model. positions: (B, W, K, 3) float64 of the batch that enters it.
    dense_positions: (B, S, 3) float64, where its dense tokens would stand, None if tokens are
    renumbered. places: the row of each visual input, the columns (N,) of its dense tokens and
    that of the token after it, None at the end. rows, columns: (T,) int64, the places of the visual
    tokens that enter. text: number of text tokens. cache_bytes: of keys and values after the
    prefill. config: the language model's configuration. reduce_ms, plan_ms: the times of reduction
    and planning.
    """

    method: str
    reads_question: bool
    grids: tuple[Grid, ...]
    first: tuple[Reduction, ...]
    later: tuple[tuple[int, tuple[Reduction, ...]], ...]
    features: Tensor
    positions: Tensor
    dense_positions: Tensor | None
    places: tuple[tuple[int, Tensor, int | None], ...]
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
        part = self._part(index)
        return self.positions[self.rows[part], self.columns[part]]

    def features_of(self, index: int) -> Tensor:
        """(M, D): the tokens of visual input `index` that entered the language model."""
        return self.features[self._part(index)]

    def next_position(self, index: int) -> float:
        """Where text after visual input `index` stands."""
        if self.dense_positions is None:
            return float(self.positions_of(index).max()) + 1
        row, columns, following = self.places[index]
        dense = self.dense_positions[row]
        if following is not None:  # the stock model's own rule
            return float(dense[following].max())
        return math.ceil(dense[columns.to(dense.device)].max()) + 1.0

    def _part(self, index: int) -> slice:
        counts = [reduction.count for reduction in self.first]
        start = sum(counts[:index])
        return slice(start, start + counts[index])

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
