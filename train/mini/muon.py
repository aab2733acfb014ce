"""Muon for the matrices, AdamW for the rest.

torch.optim.Muon casts matrices to bfloat16, which is a hundred times slower on a CPU without
bfloat16 instructions. This implementation stays in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Coefficients of the Newton-Schulz iteration (K. Jordan et al., "Muon", 2024).
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """A matrix (m, n) with its singular values moved close to 1."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = _A * x + (_B * square + _C * square @ square) @ x
    return x if wide is matrix else x.T


class Muon(torch.optim.Optimizer):
    """Orthogonalized momentum, for weight matrices of hidden layers."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.01})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step for the parameters with gradients."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                momentum = state.setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - group["momentum"])
                nesterov = weight.grad.lerp(momentum, group["momentum"])
                scale = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(orthogonal(nesterov), alpha=-group["lr"] * scale)


def optimizers(parts: nn.Module, lr: float, muon: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of layers, AdamW for embeddings, heads, norms and biases."""
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, weight in parts.named_parameters():
        inner = "layers." in name or "fusion" in name
        (matrices if inner and weight.ndim == 2 else rest).append(weight)
    made: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    ]
    made += [Muon(matrices, muon)] if matrices else []
    for optimizer, peak in zip(made, (lr, muon), strict=False):
        for group in optimizer.param_groups:
            group["peak"] = peak
    return made
