"""Cells of several experts on one canvas, so that they can be reduced together.

Experts see the same picture with different grids. On the canvas, the finest grid among them, cell i
of n stands at (i + 0.5) * canvas / n - 0.5: the middle of the part of the picture that it covers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm.fusion import Block, FusionError


@dataclass(frozen=True)
class Joint:
    """The tokens of all blocks of B visual inputs of one layout, in the order of the sequence.

    features: (B, N, D). places: (N, 3) float64, (step, row, column) on the canvas.
    saliency: (B, N) float32, each block's divided by its mean, so that experts can be compared;
        None where an expert has none.
    block: (N,) int64, the block that a token belongs to.
    """

    features: Tensor
    places: Tensor
    saliency: Tensor | None
    block: Tensor


@dataclass(frozen=True)
class JointReduction:
    """N tokens reduced to M; the fields of `compress.Reduction`, as `positions.Plan.after` reads.

    features: (B, M, D). assign: (B, N) int64, the row that a token went to. anchor: (B, M) int64,
    ascending, the token that a row stands for. size: (B, M) int64.
    """

    features: Tensor
    assign: Tensor
    anchor: Tensor
    size: Tensor


def places(blocks: Sequence[Block], canvas: tuple[int, int] | None = None) -> Tensor:
    """(N, 3) float64: (step, row, column) of every token of the blocks on the canvas.

    canvas: its (rows, columns); by default those of the finest grid among the blocks.
    """
    rows, columns = canvas or (
        max(block.grid[1] for block in blocks),
        max(block.grid[2] for block in blocks),
    )
    found = []
    for block in blocks:
        steps, down, across = block.grid
        axes = (
            torch.arange(steps, dtype=torch.float64),
            (torch.arange(down, dtype=torch.float64) + 0.5) * rows / down - 0.5,
            (torch.arange(across, dtype=torch.float64) + 0.5) * columns / across - 0.5,
        )
        found.append(torch.cartesian_prod(*axes).reshape(-1, 3))
    return torch.cat(found)


def join(blocks: Sequence[Block], features: Tensor, saliency: Tensor | None = None) -> Joint:
    """Put the tokens of the blocks, (B, N, D) with their saliency (B, N), on one canvas."""
    counts = [block.tokens for block in blocks]
    if features.ndim != 3 or features.shape[1] != sum(counts):
        raise FusionError(
            f"features of shape {tuple(features.shape)} for blocks of {counts} tokens: expected "
            f"(B, {sum(counts)}, D)"
        )
    index = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    if saliency is not None:
        if saliency.shape != features.shape[:2]:
            raise FusionError(
                f"saliency of shape {tuple(saliency.shape)}: expected {tuple(features.shape[:2])}"
            )
        parts = saliency.float().split(counts, dim=1)
        tiny = torch.finfo(torch.float32).tiny
        saliency = torch.cat([p / p.mean(1, keepdim=True).clamp(min=tiny) for p in parts], dim=1)
    return Joint(features, places(blocks), saliency, index)


def reduce(joint: Joint, keep: int) -> JointReduction:
    """Keep the `keep` most salient tokens of all experts; the others go to the nearest of them.

    Nearest is on the canvas, whichever expert a token is from; a row's features are the mean of its
    members. Of equally salient or equally near tokens the first counts. 1 <= keep <= N.
    """
    batch, count, width = joint.features.shape
    if not 1 <= keep <= count:
        raise FusionError(f"keep={keep}: expected 1 to {count}, the tokens of all experts")
    if joint.saliency is None:
        raise FusionError("these tokens have no saliency to choose by; ask for scores=True")
    order = joint.saliency.sort(dim=1, descending=True, stable=True).indices
    anchor = order[:, :keep].sort(dim=1).values
    at = joint.places.to(anchor.device)
    distance = (at[None, :, None] - at[anchor][:, None]).square().sum(-1)
    assign = distance.argmin(-1)  # the first of equal minima
    assign.scatter_(1, anchor, torch.arange(keep, device=anchor.device).expand(batch, -1))
    size = torch.zeros_like(anchor).scatter_add_(1, assign, torch.ones_like(assign))
    rows = assign[..., None].expand(-1, -1, width)
    total = joint.features.new_zeros(batch, keep, width, dtype=torch.float32)
    total = total.scatter_add(1, rows, joint.features.float())
    features = (total / size[..., None]).to(joint.features.dtype)
    return JointReduction(features, assign, anchor, size)
