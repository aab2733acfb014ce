"""What a sequence is made of: runs of text and visual inputs, in the order of the tokens.

A *cell* is one dense visual token at its home place (t, h, w) in its input's grid; cells are
counted in raster order (frame, row, column), the order in which vision-language models hand their
visual tokens to the language model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

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


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _grid(name: str, grid: Any, axes: tuple[str, ...]) -> tuple[int, ...]:
    sides = tuple(grid) if isinstance(grid, Sequence) else ()
    if len(sides) != len(axes) or not all(_is_int(n) and n >= 1 for n in sides):
        expected = f"({', '.join(axes)})"
        raise PositionError(f"{name}(grid={grid!r}): expected {expected}, integers of 1 or more")
    return sides
