"""Rotations of queries and keys (B, H, S, D) by cos and sin (B, S, <= D): the first channels turn,
the rest stays."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Channel c turns with c + half of those that turn (Llama, Qwen)."""
    turning, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    a, b = turning.chunk(2, dim=-1)
    turned = turning * cos[:, None] + torch.cat([-b, a], dim=-1) * sin[:, None]
    return torch.cat([turned, rest], dim=-1)


def rotate_neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Channel 2 c turns with 2 c + 1 (GLM, Cohere)."""
    turning, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    a, b = turning[..., ::2], turning[..., 1::2]
    turned = turning * cos[:, None] + torch.stack([-b, a], dim=-1).flatten(-2) * sin[:, None]
    return torch.cat([turned, rest], dim=-1)
