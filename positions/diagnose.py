"""How well a rotary embedding tells tokens apart at the distances of a plan.

At long distances rotation may drown what keys say: a key that matches the query better scores lower
for where it stands ("distinguishes neither positions nor tokens"). Two rates measure it, over
random queries and keys (standard normal, one head):

- flips: of two keys at two places of a visual input, how often rotation reverses which of them
  scores higher.
- inversions: of one key at two places, how often the farther one scores higher. 1/2 is chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from positions.checks import Host
from positions.layout import Text
from positions.plan import Plan

PAIRS = 4096


@dataclass(frozen=True)
class Diagnosis:
    """Rates of one visual input, as the next token of text sees it.

    segment: its number in the plan. nearest, farthest: distances on the axis that spans most.
    """

    segment: int
    nearest: float
    farthest: float
    flips: float
    inversions: float


def diagnose(plan: Plan, config: object, pairs: int = PAIRS, seed: int = 0) -> list[Diagnosis]:
    """The rates of each visual input of a plan with two tokens or more.

    config: a transformers configuration. pairs: random pairs of tokens for each input.
    """
    host, found = Host.of(config), []
    draw = torch.Generator().manual_seed(seed)
    query = torch.full((1, 1, 3), plan.next_position, dtype=torch.float64)
    for number, item in enumerate(plan.segments):
        rows = plan.rows(number)
        if isinstance(item, Text) or len(rows) < 2:
            continue
        places = plan.positions[rows][:, :1]
        picked = torch.randint(len(rows), (pairs, 2), generator=draw)
        picked[:, 1] = (picked[:, 0] + 1 + picked[:, 1] % (len(rows) - 1)) % len(rows)
        phases = [_phases(host, query) - _phases(host, places[index]) for index in picked.T]
        content, keys = _draws(pairs, len(host.inv_freq), draw)
        plain = [_score(content, key) for key in keys]
        turned = [_score(content, key, at) for key, at in zip(keys, phases, strict=True)]
        same = [_score(content, keys[0], at) for at in phases]
        distance = plan.next_position - places[:, 0]
        axis = int((distance.amax(0) - distance.amin(0)).argmax())
        far = distance[picked, axis]
        farther = torch.where(far[:, 0] > far[:, 1], same[0] > same[1], same[1] > same[0])
        apart = far[:, 0] != far[:, 1]
        found.append(
            Diagnosis(
                number,
                float(distance[:, axis].min()),
                float(distance[:, axis].max()),
                float(((plain[0] > plain[1]) != (turned[0] > turned[1])).double().mean()),
                float(farther[apart].double().mean()) if bool(apart.any()) else math.nan,
            )
        )
    return found


def _phases(host: Host, places: Tensor) -> Tensor:
    """(..., C) float64 angles of positions (..., 1, 3)."""
    return host.channels.angles(places, host.inv_freq)


def _draws(pairs: int, channels: int, draw: torch.Generator) -> tuple[Tensor, list[Tensor]]:
    """A query and two keys for each pair, (pairs, C) complex."""

    def normal() -> Tensor:
        return torch.complex(*torch.randn(2, pairs, channels, generator=draw, dtype=torch.float64))

    return normal(), [normal(), normal()]


def _score(query: Tensor, key: Tensor, phase: Tensor | None = None) -> Tensor:
    """(pairs,) inner products, the key turned back by `phase` relative to the query."""
    product = query * key.conj()
    if phase is not None:
        product = product * torch.polar(torch.ones_like(phase), phase)
    return product.real.sum(-1)
