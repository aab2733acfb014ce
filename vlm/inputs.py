"""Visual inputs as the tokens that stand for them in a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class FrameLayout:
    """How the frames of a stream stand in a prompt, step by step.

    kind: "image" or "video": the placeholder, and the encoding function of a step.
    pictures: frames that make one step.
    one_video: whether all steps are one video, whose tokens follow one another and whose time axis,
        if the model has one, counts from its start. Otherwise each step is an input of its own,
        which starts after all that came before it.
    rate: positions a second on the time axis, None for one a step.
    clears_time: whether text after a video starts after its last position on any axis, or after
        height and width alone, as transformers >= 5.3 places it for Qwen2-VL.
    stamped: whether text goes before and after each step (`ModelAdapter.frame_words`).
    """

    kind: str
    pictures: int = 1
    one_video: bool = True
    rate: float | None = None
    clears_time: bool = True
    stamped: bool = False


@dataclass(frozen=True)
class View:
    """One plane of a visual input: the whole of it, or a crop.

    grid: (t, h, w).
    indices: (t * h * w,) int64 on the host, the tokens of the input that lie in the grid,
        in raster order.
    """

    grid: Grid
    indices: Tensor


@dataclass(frozen=True)
class VisualInput:
    """One image or one video, as the N tokens that stand for it in a prompt.

    Tokens in no view are separators: a learned newline, a class token. They count as tokens of the
    input and show nothing of the picture.

    count: N.
    views: in the order of their tokens.
    rows: number of rows of the vision encoder's output, without dropped class tokens, that the
        input is made of.
    source: (N,) int64 on the host, the row that each token is made of, -1 at separators. None if
        the projector pools rows.
    planes: grids that cover all N tokens in order, for position schemes.
    note: what the adapter needs to pool rows.
    """

    count: int
    views: tuple[View, ...]
    rows: int
    source: Tensor | None
    planes: tuple[Grid, ...]
    note: Any = None

    @classmethod
    def plain(cls, grid: Grid, pooled: int = 1) -> VisualInput:
        """A grid and nothing else. pooled: rows of the vision encoder that make one token."""
        count = grid[0] * grid[1] * grid[2]
        indices = torch.arange(count)
        source = indices if pooled == 1 else None
        return cls(count, (View(grid, indices),), count * pooled, source, (grid,))

    @classmethod
    def join(cls, parts: Sequence[VisualInput]) -> VisualInput:
        """Inputs whose tokens follow one another, such as the tiles of an image, as one."""
        if len(parts) == 1:
            return parts[0]
        views, start = [], 0
        for part in parts:
            views += [View(view.grid, view.indices + start) for view in part.views]
            start += part.count
        planes = tuple(plane for part in parts for plane in part.planes)
        return cls(start, tuple(views), sum(part.rows for part in parts), None, planes)

    @property
    def grid(self) -> Grid:
        """The grid of the N tokens; (1, 1, N) if they are not a single plane."""
        if len(self.views) == 1 and len(self.views[0].indices) == self.count:
            return self.views[0].grid
        return (1, 1, self.count)
