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


@dataclass(frozen=True)
class Interpolated(StreamPositions):
    """Position interpolation (arXiv 2306.15595) of what is held: positions without gaps, and where
    these would span more than `span`, evenly closer. For a memory of more steps than the model saw
    in training. Keys are cached before rotation.

    On models with a time axis, only time is interpolated, and the layout within a step stays; else
    all positions of the stream are.
    """

    raw: ClassVar[bool] = True
    span: float = 64.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.span) and self.span > 0):
            raise PositionError(f"Interpolated(span={self.span!r}): expected a positive number")

    def at_forward(self, groups: Sequence[Held], ahead: float) -> list[Tensor]:
        placed = aligned(groups)
        axes = slice(0, 1) if groups[0].time_axis else slice(0, 3)
        streams = [held.step >= 0 for held in groups]
        if not bool(streams[0].any()):
            return placed
        times = [now[own, axes] for now, own in zip(placed, streams, strict=True)]
        first = min(float(time.amin()) for time in times)
        reach = max(float(time.amax()) for time in times) - first
        for now, own, time in zip(placed, streams, times, strict=True):
            now[own, axes] = first + (time - first) * min(1.0, self.span / max(reach, 1e-9))
        return placed


POLICIES: dict[str, type[StreamPositions]] = {
    "original": Original,
    "eager": Eager,
    "lazy": Lazy,
    "unrotated": Unrotated,
    "grouped": Grouped,
    "v2pe": Increment,
    "infinite": Infinite,
    "interpolated": Interpolated,
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
