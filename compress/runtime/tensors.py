"""Indexing of padded batches, and few copies between host and device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compress.ops import on_device


def gather(x: Tensor, index: Tensor) -> Tensor:
    """x (B or 1, S, ...) at index (B, M) int64 -> (B, M, ...)."""
    x = x.expand(index.shape[0], *x.shape[1:])
    index = index.to(x.device)
    return x[torch.arange(len(index), device=x.device)[:, None], index]


def scatter(x: Tensor, rows: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """x (B, S, ...) with values (T, ...) written at rows and columns, (T,) int64 each."""
    return x.index_put((rows, columns), values.to(x.device, x.dtype))


def copy_to(device: torch.device, *parts: Tensor | Sequence[int]) -> list[Tensor]:
    """int64 tensors made on the host, moved to a device in one copy."""
    tensors = [torch.as_tensor(part, dtype=torch.int64) for part in parts]
    flat = on_device(torch.cat([tensor.reshape(-1) for tensor in tensors]), device)
    pieces = flat.split([tensor.numel() for tensor in tensors])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]


def padded(lists: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Lists of indices as (n, longest) int64 on the host, and (n, longest) int64: 1 where real."""
    width = max((len(one) for one in lists), default=0)
    index = torch.zeros(len(lists), width, dtype=torch.int64)
    real = torch.zeros(len(lists), width, dtype=torch.int64)
    for row, one in enumerate(lists):
        index[row, : len(one)] = torch.as_tensor(one, dtype=torch.int64)
        real[row, : len(one)] = 1
    return index, real
