"""Tokens at extreme rotary phases, which stay whatever the method keeps.

IVC-Prune (ICLR 2026, arXiv 2602.03060) finds that tokens whose positions turn the rotary channels
furthest one way are what a language model measures places against.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from compress import ops
from compress.runtime.settings import Settings
from compress.tokens import Reduction
from positions import ChannelTable
from positions.channels import inverse_frequencies


def phase_count(share: float, dense: int, keep: int) -> int:
    """How many of the `keep` tokens of an input of `dense` are kept for their phases: `share` of
    the dense ones for the cosine and as many for the sine; none where all are kept.

    Raises ValueError if that leaves none for the method to choose.
    """
    count = 0 if keep == dense else 2 * math.ceil(share * dense)
    if count and count >= keep:
        raise ValueError(
            f"keep_phase is {share:g}, which keeps {count} of {dense} tokens for their phases, and "
            f"the budget lets {keep} enter: expected a smaller share, or a larger budget"
        )
    return count


def chosen_counts(settings: Settings, dense: list[int], keeps: list[int]) -> list[int]:
    """Tokens of each input that the method itself keeps."""
    share = settings.keep_phase
    if not share:
        return keeps
    pairs = zip(dense, keeps, strict=True)
    return [keep - phase_count(share, count, keep) for count, keep in pairs]


def phase_order(rotary: Any, positions: Tensor) -> Tensor:
    """(N,) int64: tokens by how extreme their phases are, cosine and sine in turn.

    The mean over rotary channels of cos(p theta), and that of sin(p theta), are ranked, the largest
    first, ties by index. The first 2 m of the order hold the first m of either.

    positions: (N, 3) float64, one a token and axis.
    """
    table = ChannelTable.of(rotary)
    frequency = inverse_frequencies(rotary).detach().to(positions)
    if table.frequency is not None:
        frequency = frequency[table.frequency.to(positions.device)]
    angle = positions[:, table.axis.to(positions.device)] * frequency
    phases = torch.stack([angle.cos().mean(1), angle.sin().mean(1)])
    order = ops.rank(phases)
    turn = torch.arange(2 * len(positions), device=order.device).reshape(-1, 2).T
    place = torch.empty_like(order).scatter_(1, order, turn)
    return place.amin(0).argsort()


def keep_also(
    reduction: Reduction, entering: Tensor, dense: Tensor, order: Tensor, count: int
) -> tuple[Reduction, Tensor]:
    """A reduction of one input and `count` tokens more: the first of `order` that it does not keep.

    They leave the rows that they were merged into, whose features stay; their rows are the last.

    entering: (M, D), the rows that enter the language model; dense: (N, D), the tokens there.
    Returns the reduction, and what enters.
    """
    anchor, assign = reduction.anchor[0], reduction.assign[0]
    kept = torch.zeros_like(assign).scatter(0, anchor, 1)
    further = order[kept[order].argsort(stable=True)[:count]]
    one = torch.ones_like(further)
    # Row -1 stands for no row: the tokens that were dropped.
    leaving = anchor.new_zeros(len(anchor) + 1).index_add(0, assign[further] + 1, one)[1:]
    rows = torch.arange(count, device=anchor.device) + len(anchor)
    entering = torch.cat([entering, dense[further]])
    whole = Reduction(
        entering[None],
        assign.scatter(0, further, rows)[None],
        torch.cat([anchor, further])[None],
        torch.cat([reduction.size[0] - leaving, one])[None],
    )
    return whole, entering
