"""The tokens that the bounded cache of a stream holds, and their positions without gaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

PER_TOKEN = ("step", "home", "now", "advance")


@dataclass(frozen=True)
class Held:
    """S cached tokens of a stream in order: the text before the stream, then its steps.

    A step is a frame, or as many as make one step of the model's time axis.

    step: (S,) int64, number of the step of each token, -1 for the text before the stream.
    home: (S, 3) float64, original positions: those in the stream without evictions.
    now: (S, 3) float64, the positions at which the keys are rotated.
    advance: (S,) float64, a number for each step. With `time_axis`, how far it stands from the step
        before it in time; else, how many positions it takes up.
    time_axis: whether only the time axis tells steps apart, as in a video under M-RoPE.
    one_axis: whether the model has one position for each token.
    """

    step: Tensor
    home: Tensor
    now: Tensor
    advance: Tensor
    time_axis: bool
    one_axis: bool

    @property
    def shift(self) -> Tensor:
        """(3,) float64: original minus current position of the newest token, 0 if there is none."""
        if not len(self.step):
            return torch.zeros(3, dtype=torch.float64)
        return self.home[-1] - self.now[-1]

    def gather(self, index: Tensor) -> Held:
        """The tokens at `index` (S',) int64."""
        parts: dict[str, Any] = {name: getattr(self, name)[index] for name in PER_TOKEN}
        return replace(self, **parts)

    def then(self, other: Held) -> Held:
        """These tokens, then others."""
        parts: dict[str, Any] = {
            name: torch.cat([getattr(self, name), getattr(other, name)]) for name in PER_TOKEN
        }
        return replace(other, **parts)

    def moved(self, now: Tensor) -> Held:
        """The same tokens at other positions."""
        return replace(self, now=now)


def compact(held: Held) -> Tensor:
    """(S, 3) float64: the positions of the tokens without the gaps that evicted steps left.

    The text before the stream stays. With one axis, tokens are numbered one by one (but keep
    fractions of a position if the stream has them). Otherwise each step keeps its inner layout, and
    moves as a whole: on the time axis alone, or on all axes. Where nothing was evicted, these are
    the original positions.
    """
    streamed = held.step >= 0
    now = held.home.clone()
    if not bool(streamed.any()):
        return now
    if held.one_axis:
        now[streamed] = _numbered(held, streamed)
        return now
    steps, index = held.step[streamed].unique_consecutive(return_inverse=True)
    firsts = torch.searchsorted(held.step, steps)
    starts = held.home[firsts].amin(1) if not held.time_axis else held.home[firsts, 0]
    advance = held.advance[firsts]
    origin = _origin(held)
    if held.time_axis:
        # A step keeps its distance from the one before it; the first stands at the origin.
        placed = origin + advance.cumsum(0) - advance[0]
    else:
        placed = origin + advance.cumsum(0) - advance
    shift = (starts - placed)[index]
    if held.time_axis:
        now[streamed, 0] -= shift
    else:
        now[streamed] -= shift[:, None]
    return now


def _origin(held: Held) -> float:
    """Where the stream starts: after the text before it."""
    before = held.home[held.step < 0]
    return float(before.amax()) + 1 if len(before) else 0.0


def _numbered(held: Held, streamed: Tensor) -> Tensor:
    """Positions of streamed tokens of a model with one axis: each as far from the token before it
    as it was, but at most one."""
    home = held.home[streamed, 0]
    origin = _origin(held)
    steps = home.diff(prepend=home.new_tensor([origin - 1])).clamp(max=1)
    return (origin - 1 + steps.cumsum(0))[:, None].expand(-1, 3)


def aligned(groups: Sequence[Held]) -> list[Tensor]:
    """`compact` of several groups of layers that hold different tokens, with the newest token at
    one position in all: the model rotates a new token once for all layers."""
    placed = [compact(held) for held in groups]
    newest = torch.stack([now[-1] for now in placed])
    last = newest.amax(0)
    for held, now in zip(groups, placed, strict=True):
        now[held.step >= 0] += last - now[-1]
    return placed
