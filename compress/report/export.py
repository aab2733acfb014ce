"""The reductions of the visual inputs of a prompt as plain tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.report.record import PrefillRecord
from compress.tokens import Reduction


def export(record: PrefillRecord) -> list[dict[str, Tensor]]:
    """One flat dictionary a visual input, on the host, as `Compression.export` describes it."""
    exported = []
    for index in range(len(record.grids)):
        (_, grid, first), *later = record.steps(index)
        tensors = _tensors("", first)
        keep = torch.zeros(first.assign.shape[1], dtype=torch.bool)
        keep[tensors["anchor"]] = True
        positions = record.positions_of(index).cpu()
        tensors |= {"grid": torch.tensor(grid), "keep": keep, "positions": positions}
        for layer, (_, _, reduction) in zip(record.layers, later, strict=True):
            tensors |= _tensors(f"layers.{layer}.", reduction)
        exported.append(tensors)
    return exported


def _tensors(prefix: str, reduction: Reduction) -> dict[str, Tensor]:
    return {
        f"{prefix}{name}": getattr(reduction, name)[0].detach().cpu().contiguous().clone()
        for name in ("assign", "anchor", "size")
    }
