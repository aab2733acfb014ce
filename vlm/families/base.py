"""What a family tells about its models: where the parts are that a reduction reads and writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlm.families.taps import Tap

Grid = tuple[int, int, int]


class UnknownFamily(ValueError):  # noqa: N818 - read as a sentence in a traceback
    """The model is not built in a way that Foveate knows."""


@dataclass(frozen=True)
class View:
    """A plane of cells of a visual input: the whole of it, or a crop.

    grid: (t, h, w). slots: (t * h * w,) int64 on the host, which of the input's tokens the cells
    are, in raster order.
    """

    grid: Grid
    slots: Tensor


@dataclass(frozen=True)
class VisualInput:
    """One image or one video, as the N tokens that stand for it in a prompt.

    Tokens in no view are separators (a learned newline, a class token). They count as tokens of
    the input, but hold nothing of the picture: a reduction keeps cells first.

    count: N. views: planes of cells, in the order of their tokens. rows: how many rows of the
    vision tower (class tokens left out) the input is made of. source: (N,) int64 on the host, the
    row that each token is made of, -1 at separators; None where the projector pools rows.
    planes: grids that cover all N tokens in order, for schemes of positions. note: whatever its
    family needs to pool rows.
    """

    count: int
    views: tuple[View, ...]
    rows: int
    source: Tensor | None
    planes: tuple[Grid, ...]
    note: Any = None

    @classmethod
    def plain(cls, grid: Grid, pooled: int = 1) -> VisualInput:
        """A grid of cells and nothing else, each cell made of `pooled` rows of the tower."""
        count = grid[0] * grid[1] * grid[2]
        every = torch.arange(count)
        source = every if pooled == 1 else None
        return cls(count, (View(grid, every),), count * pooled, source, (grid,))

    @classmethod
    def join(cls, parts: Sequence[VisualInput]) -> VisualInput:
        """Inputs whose tokens follow one another, such as the tiles of an image, as one."""
        if len(parts) == 1:
            return parts[0]
        views, start = [], 0
        for part in parts:
            views += [View(view.grid, view.slots + start) for view in part.views]
            start += part.count
        planes = tuple(plane for part in parts for plane in part.planes)
        return cls(start, tuple(views), sum(part.rows for part in parts), None, planes)

    @property
    def grid(self) -> Grid:
        """The grid of the N tokens; (1, 1, N) where they are no single plane."""
        if len(self.views) == 1 and len(self.views[0].slots) == self.count:
            return self.views[0].grid
        return (1, 1, self.count)


class ModelAdapter(ABC):
    """The parts of one model. A subclass is written for one way of building models.

    The model's core has `get_image_features`, and `get_video_features` where it takes videos,
    which return an output whose `pooler_output` holds the features as the language model receives
    them; this is so for every model of transformers >= 5.20.

    name: the family's name. model_types: the values of `config.model_type` that it serves.
    kinds: "image" and "video", those that it takes, in the order in which the model encodes them.
    media: arguments of `forward` that bring visual inputs.
    one_run_one_input: whether the tiles of an image are inputs of their own to the vision side, and
        stand in the prompt without text between them.
    resizes: whether the tower takes smaller pictures (see `resized`).
    """

    name: ClassVar[str]
    model_types: ClassVar[frozenset[str]]
    kinds: ClassVar[tuple[str, ...]] = ("image",)
    media: ClassVar[tuple[str, ...]] = ("pixel_values", "pixel_values_videos", "mm_encoder_outputs")
    one_run_one_input: ClassVar[bool] = False
    resizes: bool = False

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    # -- the language model ------------------------------------------------------------

    @property
    def core(self) -> Any:
        """The model below the head: it joins text and visual features."""
        return self.model.model

    @property
    def config(self) -> Any:
        """The configuration of the whole model."""
        return self.core.config

    @property
    def language_model(self) -> Any:
        """The decoder, called by the core with `inputs_embeds`."""
        return self.core.language_model

    @property
    def layers(self) -> Sequence[Any]:
        """The decoder layers, in order."""
        return self.language_model.layers

    @property
    def norm(self) -> nn.Module:
        """The decoder's final norm."""
        return self.language_model.norm

    @property
    def rotary(self) -> nn.Module:
        """The decoder's rotary embedding."""
        return self.language_model.rotary_emb

    @property
    def deltas(self) -> Tensor | None:
        """(B, 1): what the model adds to the text positions of later turns, under M-RoPE."""
        return getattr(self.core, "rope_deltas", None)

    def placeholder(self, kind: str) -> int:
        """The token id that stands for visual tokens of a kind."""
        return int(getattr(self.config, f"{kind}_token_id"))

    # -- the vision side ---------------------------------------------------------------

    @property
    def cells(self) -> int | None:
        """Tokens of every image, where the family has but one grid; else None."""
        return None

    @property
    @abstractmethod
    def tower(self) -> nn.Module:
        """The vision tower of images (for timing)."""

    @abstractmethod
    def vision_layers(self, kind: str) -> Sequence[Any]:
        """The layers of the vision tower that sees inputs of `kind`, in order."""

    @abstractmethod
    def tap(self, layer: Any) -> Tap:
        """A new reader of one of `vision_layers`."""

    def feature_layer(self, kind: str) -> int:
        """The vision layer whose output the projector gets, from the front."""
        depth = len(self.vision_layers(kind))
        given = getattr(self.config, "vision_feature_layer", None)
        if given is None:
            return depth - 1
        last = given if isinstance(given, int) else given[-1]
        # hidden_states[i] is the output of layer i - 1 counted from the front, of i from the back.
        return last + depth if last < 0 else max(last - 1, 0)

    def scoring_layer(self, kind: str, index: int | None) -> int:
        """The vision layer that serves as `index`, from the front: None is `feature_layer`, a
        negative one counts from the back, and there is always a nearest."""
        depth = len(self.vision_layers(kind))
        if index is None:
            return self.feature_layer(kind)
        return min(max(index + depth if index < 0 else index, 0), depth - 1)

    def merge_point(self, kind: str) -> nn.Module | None:
        """The module whose input holds one row for each cell, before rows are projected; None where
        the projector pools rows, so that merging follows it."""
        return None

    @abstractmethod
    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        """The visual inputs of one call of `get_{kind}_features`, in order.

        call: the arguments by name.
        """

    def pool(self, item: VisualInput, rows: Tensor) -> Tensor:
        """What the projector's pooling and packing make of values given for each row of the tower.

        rows: (R, C) for the R rows of `item`. Returns (N, C), 0 at separators.
        """
        if item.source is None:
            raise NotImplementedError(f"{type(self).__name__} pools rows and does not say how")
        source = item.source.to(rows.device)
        return rows[source.clamp(min=0)].masked_fill((source < 0)[:, None], 0)

    def resized(self, side: int, block_of: Tensor) -> AbstractContextManager[None]:
        """While it lasts, the tower sees pictures of side x side patches; each of its rows is given
        to all cells of its block. block_of: (N,) int64, the block of each cell of the dense grid.

        Only where `resizes` is true: one square picture of one resolution an input.
        """
        raise NotImplementedError(f"{self.name} has no pictures of another size")

    @abstractmethod
    def blank(self, kind: str) -> dict[str, Any]:
        """Arguments of `get_{kind}_features` for one empty input, as small as the model takes:
        tensors, or dicts of them by expert.

        Under ZeRO-3 every process must run the same modules, also one whose batch has no images.
        """
