"""What a compression did to the visual inputs of a prompt, as plain tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.report.cost import Record
from compress.tokens import Reduction


def export(record: Record) -> list[dict[str, Tensor]]:
    """One flat dictionary a visual input, as `Compression.export` describes it."""
    found = []
    for index, positions in enumerate(record.positions()):
        (_, grid, first), *later = record.stages(index)
        tensors = _tensors("", first)
        keep = torch.zeros(first.assign.shape[1], dtype=torch.bool)
        keep[tensors["anchor"]] = True
        tensors |= {"grid": torch.tensor(grid), "keep": keep, "positions": positions.cpu()}
        for layer, (_, _, reduction) in zip(record.layers(), later, strict=True):
            tensors |= _tensors(f"layers.{layer}.", reduction)
        found.append(tensors)
    return found


def _tensors(prefix: str, reduction: Reduction) -> dict[str, Tensor]:
    return {
        f"{prefix}{name}": getattr(reduction, name)[0].detach().cpu().contiguous().clone()
        for name in ("assign", "anchor", "size")
    }
