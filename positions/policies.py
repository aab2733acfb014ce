"""Where the tokens of a stream stand when others are evicted: one small dataclass for each policy.

A policy places new tokens relative to the newest one that is held, and may move the held ones. A
held key is moved by one rotation (`positions.rerotate`, positional integrity encoding).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from positions.errors import PositionError
from positions.held import Held, aligned


@dataclass(frozen=True)
class StreamPositions:
    """The base of all policies; by itself that of original positions.

    raw: whether keys are cached before rotation, and rotated for each forward.
    """

    raw: ClassVar[bool] = False

    @property
    def increment(self) -> float:
        """How far visual tokens advance, relative to the model's own scheme: on the time axis where
        steps are told apart by it, else on all axes."""
        return 1.0

    def after_eviction(
        self, groups: Sequence[Held], ahead: float, limit: int
    ) -> list[Tensor] | None:
        """New positions (S, 3) for each group of layers, or None to leave them.

        ahead: the position at which the next text would start. limit: the positions that the model
        was trained for.
        """
        return None

    def at_forward(self, groups: Sequence[Held], ahead: float) -> list[Tensor]:
        """Positions (S, 3) for each group at which raw keys are rotated for a forward."""
        return [held.now for held in groups]

    def question_at(self, ahead: float, before: float) -> float:
        """Where a question starts. ahead: after the stream. before: after the text before it."""
        return ahead


@dataclass(frozen=True)
class Original(StreamPositions):
    """Original positions: evicted tokens leave gaps, and positions grow with the stream."""


@dataclass(frozen=True)
class Eager(StreamPositions):
    """Positions without gaps, renewed at an eviction (HERMES' eager form, StreamingVLM).

    every: the least number of positions that a renewal must save. Each renewal rounds the keys
        once; a larger number bounds their number.
    """

    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise PositionError(f"Eager(every={self.every}): expected at least 1")

    def after_eviction(
        self, groups: Sequence[Held], ahead: float, limit: int
    ) -> list[Tensor] | None:
        placed = aligned(groups)
        saved = groups[0].now[-1] - placed[0][-1]
        moved = any(bool((now != held.now).any()) for now, held in zip(placed, groups, strict=True))
        return placed if moved and float(saved.amax()) >= self.every else None


@dataclass(frozen=True)
class Lazy(StreamPositions):
    """Original positions until the next text would start beyond a limit; then those without gaps
    (HERMES' lazy form).

    limit: None is the model's `max_position_embeddings` less `margin`.
    margin: positions kept free for a question and its answer.
    """

    limit: int | None = None
    margin: int = 1024

    def after_eviction(
        self, groups: Sequence[Held], ahead: float, limit: int
    ) -> list[Tensor] | None:
        end = limit - self.margin if self.limit is None else self.limit
        return aligned(groups) if ahead > max(end, 1) else None


@dataclass(frozen=True)
class Unrotated(StreamPositions):
    """Keys are cached before rotation; each forward rotates them at positions without gaps (ReKV,
    DSCache with `--continuous`). No rounding adds up; each forward rotates the whole cache."""

    raw: ClassVar[bool] = True

    def at_forward(self, groups: Sequence[Held], ahead: float) -> list[Tensor]:
        return aligned(groups)


@dataclass(frozen=True)
class Grouped(StreamPositions):
    """Group Position Encoding (arXiv 2505.16983): the stream and the text about it count from
    origins of their own, so that frames never move a question. Their positions overlap.

    gap: where questions start, counted from the end of the text before the stream.
    """

    gap: float = 0.0

    def question_at(self, ahead: float, before: float) -> float:
        return before + self.gap


@dataclass(frozen=True)
class Increment(StreamPositions):
    """V2PE's increments (arXiv 2412.09616) for a stream: visual tokens advance by `delta`.

    On models with a time axis, time advances by `delta` of what it would; height and width stay.
    """

    delta: float = 0.25

    def __post_init__(self) -> None:
        if not (math.isfinite(self.delta) and self.delta > 0):
            raise PositionError(f"Increment(delta={self.delta!r}): expected a positive number")

    @property
    def increment(self) -> float:
        return self.delta


@dataclass(frozen=True)
class Infinite(StreamPositions):
    """LM-Infinite's cap (arXiv 2308.16137): no key is rotated further than `limit` positions behind
    the newest token, however old it is. With a memory that keeps the newest tokens, its window; the
    text before the stream is its sinks. Keys are cached before rotation.

    On models with a time axis, the cap is on time alone. New tokens of one step share the cap of
    its first.
    """

    raw: ClassVar[bool] = True
    limit: int = 4096

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise PositionError(f"Infinite(limit={self.limit}): expected at least 1")

    def at_forward(self, groups: Sequence[Held], ahead: float) -> list[Tensor]:
        placed = []
        for held in groups:
            end = max(ahead, float(held.home[-1, 0]))
            far = (end - self.limit - held.home[:, 0]).clamp(min=0)
            now = held.home.clone()
            if held.time_axis:
                now[:, 0] += far
            else:
                now += far[:, None]
            placed.append(now)
        return placed


POLICIES: dict[str, type[StreamPositions]] = {
    "original": Original,
    "eager": Eager,
    "lazy": Lazy,
    "unrotated": Unrotated,
    "grouped": Grouped,
    "v2pe": Increment,
    "infinite": Infinite,
}


def stream_positions(policy: str | StreamPositions) -> StreamPositions:
    """A policy by name with its defaults, or the instance given.

    Raises PositionError for an unknown name, listing the known ones.
    """
    if isinstance(policy, StreamPositions):
        return policy
    if policy not in POLICIES:
        raise PositionError(
            f"positions is {policy!r}; known policies for streams: {', '.join(POLICIES)}"
        )
    return POLICIES[policy]()
