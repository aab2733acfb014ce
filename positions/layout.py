"""What a sequence is made of: runs of text and visual inputs, in the order of the tokens.

A *cell* is one dense visual token at its home place (t, h, w) in its input's grid; cells are
counted in raster order (frame, row, column), the order in which vision-language models hand their
visual tokens to the language model.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from positions.errors import PositionError

if TYPE_CHECKING:
    from positions.schemes import Scheme


@dataclass(frozen=True)
class Text:
    """A run of `length` text tokens (0 or more), one position step each.

    `stream` names the counter that the run reads and advances (see `plan`).
    """

    length: int
    stream: str = "main"

    def __post_init__(self) -> None:
        if not _is_int(self.length) or self.length < 0:
            raise PositionError(f"Text(length={self.length!r}): expected an integer of 0 or more")

    @property
    def cells(self) -> int:
        """Number of tokens."""
        return self.length


@dataclass(frozen=True)
class Image:
    """One image (or one expert's view of it) of `grid` = (rows, columns) cells.

    scheme: in place of the plan's scheme, for this input alone.
    expert: the name of the vision encoder that the cells come from, for poly-expert models.
    stream: the counter that the input reads and advances (see `plan`).
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
    def cells(self) -> int:
        """Number of cells."""
        return math.prod(self.grid)


@dataclass(frozen=True)
class Video:
    """One video of `grid` = (steps, rows, columns) cells; a step may stand for several frames.

    times: seconds between two steps (a number), or the time stamp of every step in seconds
    (a sequence of `steps` numbers that never falls). Only schemes that read seconds use it.
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
                    "for each step of the grid, none before the one that it follows"
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
    def cells(self) -> int:
        """Number of cells."""
        return math.prod(self.grid)


Visual = Image | Video
Segment = Text | Image | Video


def layout_of(
    input_ids: Tensor, inputs: Mapping[int, Sequence[Visual]]
) -> tuple[list[Segment], list[tuple[int, ...]]]:
    """Read a layout off one sample's token ids.

    input_ids: (S,) integers without padding, where each visual token is a placeholder id.
    inputs: for each placeholder id, the visual inputs that it stands for, in order. A video whose
        steps are parted by text (Qwen3-VL) becomes several segments.
    Returns the segments, and for each visual input in order of appearance the indices of its
    segments, as `Plan.after` takes them.

    Raises PositionError where ids and inputs do not match.
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
                    f"{len(inputs[placeholder])} inputs given have cells: expected equal numbers"
                )
            part, rest = _split(queue.popleft(), length)
            if part is None:
                raise PositionError(
                    f"a run of {length} tokens of placeholder {placeholder} meets an input of "
                    f"{rest}: expected a run of as many tokens as the input has cells (or a "
                    "video's whole steps)"
                )
            key = begun[number - 1]
            if key is None:
                key = []
                keys.append(key)
            key.append(len(segments))
            begun[number - 1] = None if rest is None else key
            if rest is not None:
                queue.appendleft(rest)
            segments.append(part)
            length -= part.cells
    for placeholder, queue in zip(inputs, queues, strict=True):
        if queue:
            raise PositionError(
                f"{len(queue)} inputs of placeholder {placeholder} have no tokens in input_ids, "
                f"the first being {queue[0]}: expected one run of tokens an input"
            )
    return segments, [tuple(key) for key in keys]


def _split(item: Visual, length: int) -> tuple[Visual | None, Visual | None]:
    """What of `item` a run of `length` tokens holds, and what is left (None, item: no fit)."""
    if item.cells <= length:
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
