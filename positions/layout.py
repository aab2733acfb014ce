"""What a sequence consists of: runs of text and visual inputs, in the order of the tokens.

A visual input has one dense token at each cell (t, h, w) of its grid. Tokens are counted in raster
order (frame, row, column), the order in which vision-language models pass them to the language
model.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from positions.errors import PositionError

Array = npt.NDArray[np.float64]


@runtime_checkable
class Scheme(Protocol):
    """How the tokens of a visual input get their positions.

    `plan` asks a scheme for the positions of one input at a time. It places text itself, by one
    rule for every scheme: the next text token gets ceil(the largest position of the input, over all
    axes) + 1. A custom scheme inherits from this class and implements `place`.
    """

    def place(self, item: Visual, start: float, generator: torch.Generator | None) -> Array:
        """Return the positions of the tokens of `item` in raster order.

        Args:
            start: the position that a text token would take here.
            generator: the source of randomness, for schemes that draw.

        Returns (tokens, 3) float64 (t, h, w), or (tokens, 1) where the three axes are equal.
        """
        ...

    def fitted(self, segments: Sequence[Segment]) -> Scheme:
        """Return the scheme with the parameters that depend on the layout; by default itself."""
        return self


@dataclass(frozen=True)
class Text:
    """A run of text tokens, one position step each.

    Args:
        length: the number of tokens, 0 or more.
        stream: the name of the counter that the run reads and advances (see `plan`).
    """

    length: int
    stream: str = "main"

    def __post_init__(self) -> None:
        if not _is_int(self.length) or self.length < 0:
            raise PositionError(f"Text(length={self.length!r}): expected an integer of 0 or more")

    @property
    def tokens(self) -> int:
        """The number of tokens."""
        return self.length


@dataclass(frozen=True)
class Image:
    """One image, or one expert's view of it.

    Args:
        grid: (rows, columns) of dense tokens.
        scheme: the scheme of this input, in place of the plan's.
        expert: the name of the vision encoder of the tokens, for poly-expert models.
        stream: the name of the counter that the input reads and advances (see `plan`).
    """

    grid: tuple[int, int]
    scheme: Scheme | None = None
    expert: str | None = None
    stream: str = "main"

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", _grid("Image", self.grid, ("h", "w")))

    @property
    def shape(self) -> tuple[int, int, int]:
        """The grid with its time axis: (1, rows, columns)."""
        return (1, *self.grid)

    @property
    def tokens(self) -> int:
        """The number of dense tokens."""
        return math.prod(self.grid)


@dataclass(frozen=True)
class Video:
    """One video.

    Args:
        grid: (steps, rows, columns) of dense tokens. A step may represent several frames.
        times: seconds between two steps, or the time stamp of each step in seconds, not
            decreasing. Only schemes that read seconds use it.
        scheme, expert, stream: as for `Image`.
    """

    grid: tuple[int, int, int]
    times: float | tuple[float, ...] | None = None
    scheme: Scheme | None = None
    expert: str | None = None
    stream: str = "main"

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", _grid("Video", self.grid, ("t", "h", "w")))
        if self.times is None:
            return
        if isinstance(self.times, Sequence):
            times = tuple(float(x) for x in self.times)
            rising = all(a <= b for a, b in pairwise(times))
            if len(times) != self.grid[0] or not rising or not all(map(math.isfinite, times)):
                raise PositionError(
                    f"Video(times={self.times!r}): expected {self.grid[0]} finite time stamps, one "
                    "for each step of the grid, in ascending order"
                )
            object.__setattr__(self, "times", times)
        elif not (math.isfinite(self.times) and self.times >= 0):
            raise PositionError(
                f"Video(times={self.times!r}): expected seconds per step, finite and not negative"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """The grid: (steps, rows, columns)."""
        return self.grid

    @property
    def tokens(self) -> int:
        """The number of dense tokens."""
        return math.prod(self.grid)


Visual = Image | Video
Segment = Text | Image | Video


def layout_of(
    input_ids: Tensor, inputs: Mapping[int, Sequence[Visual]]
) -> tuple[list[Segment], list[tuple[int, ...]]]:
    """Read the layout of one sample from its token ids.

    Args:
        input_ids: (S,) integers without padding. Each visual token is a placeholder id.
        inputs: for each placeholder id its visual inputs, in order. A video with text between its
            steps (Qwen3-VL) becomes several segments.

    Returns the segments, and for each visual input in order of appearance the indices of its
    segments, as `Plan.after` takes them.

    Raises:
        PositionError: the ids and the inputs do not match.
    """
    ids = input_ids.cpu()
    if ids.ndim != 1:
        raise PositionError(f"input_ids of shape {tuple(ids.shape)}: expected one sample, (S,)")
    kind = torch.zeros_like(ids)
    for number, placeholder in enumerate(inputs, start=1):
        kind[ids == placeholder] = number
    kinds, lengths = torch.unique_consecutive(kind, return_counts=True)
    queues = [deque(items) for items in inputs.values()]
    begun: list[list[int] | None] = [None] * len(queues)
    segments: list[Segment] = []
    keys: list[list[int]] = []
    for number, length in zip(kinds.tolist(), lengths.tolist(), strict=True):
        if number == 0:
            segments.append(Text(length))
            continue
        queue, placeholder = queues[number - 1], list(inputs)[number - 1]
        while length:
            if not queue:
                raise PositionError(
                    f"input_ids hold {length} tokens of placeholder {placeholder} more than the "
                    f"{len(inputs[placeholder])} inputs given have: expected equal numbers"
                )
            part, rest = _split(queue.popleft(), length)
            if part is None:
                raise PositionError(
                    f"a run of {length} tokens of placeholder {placeholder} does not fit {rest}: "
                    "expected a run of as many tokens as the input has (or whole steps of a video)"
                )
            key = begun[number - 1]
            if key is None:
                keys.append(key := [])
            key.append(len(segments))
            begun[number - 1] = None if rest is None else key
            if rest is not None:
                queue.appendleft(rest)
            segments.append(part)
            length -= part.tokens
    for placeholder, queue in zip(inputs, queues, strict=True):
        if queue:
            raise PositionError(
                f"{len(queue)} inputs of placeholder {placeholder} have no tokens in input_ids, "
                f"the first being {queue[0]}: expected one run of tokens an input"
            )
    return segments, [tuple(key) for key in keys]


def _split(item: Visual, length: int) -> tuple[Visual | None, Visual | None]:
    """The part of `item` that fills a run of `length` tokens, and the rest.

    (item, None) where the whole input fits, (None, item) where no whole step of it fits.
    """
    if item.tokens <= length:
        return item, None
    steps, rest = divmod(length, math.prod(item.shape[1:]))
    if rest or not isinstance(item, Video):
        return None, item
    _, h, w = item.grid
    first, last = item.times, item.times
    if isinstance(item.times, tuple):
        first, last = item.times[:steps], item.times[steps:]
    return (
        replace(item, grid=(steps, h, w), times=first),
        replace(item, grid=(item.grid[0] - steps, h, w), times=last),
    )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _grid(name: str, grid: Any, axes: tuple[str, ...]) -> tuple[int, ...]:
    sides = tuple(grid) if isinstance(grid, Sequence) else ()
    if len(sides) != len(axes) or not all(_is_int(n) and n >= 1 for n in sides):
        expected = f"({', '.join(axes)})"
        raise PositionError(f"{name}(grid={grid!r}): expected {expected}, integers of 1 or more")
    return sides
