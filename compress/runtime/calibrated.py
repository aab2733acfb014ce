"""The terms of a `Calibration`, for the visual tokens that a decoder layer sees."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from compress.calibration import Calibration
from compress.tokens import Reduction


def key_terms(
    calibration: Calibration, reductions: Sequence[Reduction], layer: int, device: torch.device
) -> Tensor | None:
    """(T,) float32: what is added to the logits of each visual key in the layers from `layer` on;
    None where that is 0 for all.

    reductions: from the dense tokens of each input to those that are left.
    """
    counts = [(reduction.assign.shape[1], reduction.count) for reduction in reductions]
    if all(dense == left for dense, left in counts):
        return None
    if layer == 0 and calibration.first_layer:
        parts = [torch.full((n,), math.log(dense / n), device=device) for dense, n in counts if n]
        return torch.cat(parts)
    if not calibration.size:
        return None
    return torch.cat([reduction.size[0] for reduction in reductions]).to(device).float().log()


def distance_terms(
    query: tuple[Tensor, Tensor], key: tuple[Tensor, Tensor], visual: Tensor
) -> Tensor:
    """(B, q, n) float32: log(2 - mean_c cos(delta theta_c)) at visual keys, 0 at others.

    query, key: cos and sin of the rotary embedding, (B or 1, q or n, channels). The mean is over
    the channels that are rotated, so it holds for any number of position axes. visual: (B, n) bool.
    """
    (cos_q, sin_q), (cos_k, sin_k) = (tuple(x.float() for x in pair) for pair in (query, key))
    product = cos_q @ cos_k.mT + sin_q @ sin_k.mT
    # Rotary embeddings for long contexts scale cos and sin.
    scale = (cos_k.square() + sin_k.square()).sum(-1).unsqueeze(1)
    terms = (2 - product / scale).clamp(min=1.0).log()
    return terms.masked_fill(~visual[:, None], 0.0)
