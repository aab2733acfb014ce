"""The schemes that give the dense tokens of a visual input their positions.

A scheme is a small frozen dataclass with one method, `place` (see `positions.Scheme`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from positions.errors import PositionError
from positions.layout import Array, Scheme, Segment, Text, Video, Visual

# The increments of V2PE: 1, 1/2, ..., 1/256.
DELTAS = tuple(2.0**-n for n in range(9))

# The finest increment at which neighbours differ in cos and sin of each dtype: four units in the
# last place just below 1. bfloat16 has 8 bits, so 1/64.
FINEST = {torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}


@dataclass(frozen=True)
class Sequential(Scheme):
    """One position step per token, in raster order, as for text.

    The positions of 1-D models (LLaVA, LLaVA-OneVision, InternVL); "original" in MouSi
    (arXiv 2401.17221, section 3.3).
    """

    def place(self, item: Visual, start: float, generator: torch.Generator | None) -> Array:
        """Return (tokens, 1): start, start + 1, ..."""
        return start + np.arange(item.tokens, dtype=np.float64)[:, None]


@dataclass(frozen=True)
class V2PE(Scheme):
    """Variable visual position encoding: each token `delta` after the one before it.

    V2PE (arXiv 2412.09616, section 3.2), InternVL3 (arXiv 2504.10479, section 2.1). `delta` is the
    increment itself, the same for every token of an input; the released code's stride is
    256 * delta. With delta = 1 this is `Sequential`.

    Args:
        delta: a positive number (1, 1/2, ..., 1/256 in the paper). "random" draws one of these nine
            for each input, as in training; `plan` then needs a generator. "auto" takes the largest
            of the nine with which text and visual tokens fit in `window`. It does not go below the
            increment that `dtype` resolves (1/64 in bfloat16, 1/256 otherwise): where that is not
            enough, planning raises PositionError.
        per: what "random" draws for: each "input", or each "frame" of a video.
        window: for "auto", the number of positions to fit in, such as the trained context length.
        dtype: for "auto", the dtype of cos and sin.
    """

    delta: float | Literal["random", "auto"] = 0.25
    per: Literal["input", "frame"] = "input"
    window: int | None = None
    dtype: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        wanted = "expected a positive finite number, 'random' or 'auto'"
        if isinstance(self.delta, str):
            if self.delta not in ("random", "auto"):
                raise PositionError(f"V2PE(delta={self.delta!r}): {wanted}")
        elif not (math.isfinite(self.delta) and self.delta > 0):
            hint = " (Compact(by='all') gives one position to all tokens)" * (self.delta == 0)
            raise PositionError(f"V2PE(delta={self.delta!r}): {wanted}{hint}")
        if self.per not in ("input", "frame"):
            raise PositionError(f"V2PE(per={self.per!r}): expected 'input' or 'frame'")
        if self.delta == "auto" and (self.window is None or self.window < 1):
            raise PositionError(
                f"V2PE(delta='auto', window={self.window!r}): expected the number of positions to "
                "fit in, such as config.max_position_embeddings"
            )

    def fitted(self, segments: Sequence[Segment]) -> V2PE:
        """Return the scheme with the increment that "auto" means for this layout."""
        if self.delta != "auto" or self.window is None:
            return self
        text = sum(item.tokens for item in segments if isinstance(item, Text))
        visual = sum(item.tokens for item in segments) - text
        # Each input rounds its end up to a whole position.
        inputs = sum(not isinstance(item, Text) for item in segments)
        finest = max(FINEST.get(self.dtype, DELTAS[-1]), DELTAS[-1])
        for delta in DELTAS:
            if delta >= finest and text + math.ceil(visual * delta) + inputs <= self.window:
                return replace(self, delta=delta)
        raise PositionError(
            f"V2PE('auto'): {text} text and {visual} visual tokens do not fit in {self.window} "
            f"positions at {finest:g}, the finest increment for {self.dtype}; expected fewer "
            "visual tokens (reduce them first) or a longer window"
        )

    def place(self, item: Visual, start: float, generator: torch.Generator | None) -> Array:
        """Return (tokens, 1): start - 1 + delta, start - 1 + 2 delta, ... (from 0 at the start)."""
        if self.delta == "auto":
            raise PositionError(
                "V2PE('auto') has no increment yet: expected V2PE.fitted(segments), which plan() "
                "calls with the whole layout"
            )
        if self.delta == "random":
            frames = item.shape[0] if self.per == "frame" else 1
            draws = _draw(len(DELTAS), frames, generator, "V2PE('random')")
            deltas = np.array(DELTAS)[draws]
            steps = deltas.repeat(item.tokens // frames).cumsum()
            first = deltas[0]
        else:
            steps = np.arange(1, item.tokens + 1) * float(self.delta)
            first = float(self.delta)
        # The token before is at start - 1; where there is none, the first token is at start.
        return np.asarray((start - 1.0 if start > 0 else start - first) + steps)[:, None]


@dataclass(frozen=True)
class Traversal(Scheme):
    """One step per token in an order of traversal, as the two orders of 2D-TPE (arXiv 2409.19700).

    by: "row" is `Sequential`; "column" numbers the grid column by column, so that cells of a column
        of a table stand next to each other; "snake" turns every second row around. Each step of a
        video is traversed by itself. The causal mask stays that of the rows.

    2D-TPE mixes both orders by a trained router in each layer; here is one order for all.
    """

    by: Literal["row", "column", "snake"] = "column"

    def __post_init__(self) -> None:
        if self.by not in ("row", "column", "snake"):
            raise PositionError(f"Traversal(by={self.by!r}): expected 'row', 'column' or 'snake'")

    def place(self, item: Visual, start: float, generator: torch.Generator | None) -> Array:
        """Return (tokens, 1): start + the rank of each token in the traversal."""
        steps, rows, columns = item.shape
        rank = np.arange(rows * columns).reshape(rows, columns)
        if self.by == "column":
            rank = rank.reshape(columns, rows).T
        elif self.by == "snake":
            rank[1::2] = rank[1::2, ::-1]
        each = np.arange(steps)[:, None] * rows * columns + rank.flatten()
        return start + each.astype(np.float64).reshape(-1, 1)


@dataclass(frozen=True)
class Compact(Scheme):
    """MouSi's positions for experts with many tokens (arXiv 2401.17221, section 3.3).

    Args:
        by: "row" gives each row of the grid one position; "all" gives the whole image one;
            "row_col" puts the row on the h axis and the column on the w axis and needs a model with
            three axes (the paper's code was never released; on one axis the column would need a
            learned vector); "original" is `Sequential`.

    Each step of a video is treated as an image.
    """

    by: Literal["row", "all", "row_col", "original"] = "row"

    def __post_init__(self) -> None:
        if self.by not in ("row", "all", "row_col", "original"):
            raise PositionError(
                f"Compact(by={self.by!r}): expected 'row', 'all', 'row_col' or 'original'"
            )

    def place(self, item: Visual, start: float, generator: torch.Generator | None) -> Array:
        """Return (tokens, 1), or (tokens, 3) by row and column."""
        t, h, _ = item.shape
        if self.by == "row_col":
            return MRoPE().place(item, start, generator)
        count = {"row": t * h, "all": t, "original": item.tokens}[self.by]
        numbers = start + np.arange(count, dtype=np.float64)
        return numbers.repeat(item.tokens // count)[:, None]


@dataclass(frozen=True)
class MRoPE(Scheme):
    """The three axes of Qwen2-VL (arXiv 2409.12191, section 2.1) and its successors.

    The token at grid cell (i, r, c) has the position (start + time of step i, start + r,
    start + c). Which rotary channels read which axis (chunked or interleaved) depends on the model.

    Args:
        tokens_per_second: positions per second of a video's `times` (Qwen2.5-VL: 2 in the released
            configurations; times default to one second per step). None gives one position per step
            (Qwen2-VL, and Qwen3-VL, whose videos are one input per step with text between).
        whole: round times down to whole positions, as the models were trained.
        time_scale: a factor on the time axis alone.
        canvas: (rows, columns) on which h and w are counted, whatever the grid of the input, so
            that inputs of several experts have comparable positions.
    """

    tokens_per_second: float | None = None
    whole: bool = True
    time_scale: float = 1.0
    canvas: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("tokens_per_second", "time_scale"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise PositionError(f"MRoPE({name}={value!r}): expected a positive finite number")

    def place(self, item: Visual, start: float, generator: torch.Generator | None) -> Array:
        """Return (tokens, 3)."""
        t, h, w = item.shape
        rows, columns = self.canvas or (h, w)
        out = np.empty((t, h, w, 3))
        out[..., 0] = (start + self.time_scale * self._times(item))[:, None, None]
        out[..., 1] = (start + _on_canvas(h, rows))[:, None]
        out[..., 2] = start + _on_canvas(w, columns)
        return out.reshape(-1, 3)

    def _times(self, item: Visual) -> Array:
        steps = item.shape[0]
        if self.tokens_per_second is None or not isinstance(item, Video):
            return np.arange(steps, dtype=np.float64)
        if isinstance(item.times, tuple):
            times = np.array(item.times) - item.times[0]
            # Decimal time stamps miss whole numbers by a rounding error; floor must not see it.
            times = times * self.tokens_per_second + 1e-6 * self.whole
        else:
            # In float32, as transformers does it, for the same rounding down.
            seconds = np.float32(1.0 if item.times is None else item.times)
            interval = np.float32(self.tokens_per_second) * seconds
            times = (np.arange(steps, dtype=np.float32) * interval).astype(np.float64)
        return np.floor(times) if self.whole else times


@dataclass(frozen=True)
class Randomised(Scheme):
    """Training augmentation: positions with gaps, in order (RPE-2D, arXiv 2503.18719).

    For each axis, as many positions as the input needs are drawn without replacement from a range
    and sorted. The model thereby learns gaps such as a reduction leaves. `plan` needs a generator.

    Args:
        span: (steps, rows, columns), the ranges of the three axes, or one range for the raster
            order of a 1-D model.
    """

    span: int | tuple[int, int, int]

    def place(self, item: Visual, start: float, generator: torch.Generator | None) -> Array:
        """Return (tokens, 1) or (tokens, 3). Raises PositionError where the span is too small."""
        if isinstance(self.span, int):
            return start + self._subset(item.tokens, self.span, generator)[:, None]
        out = np.empty((*item.shape, 3))
        for axis, (count, span) in enumerate(zip(item.shape, self.span, strict=True)):
            side = [1, 1, 1]
            side[axis] = count
            out[..., axis] = start + self._subset(count, span, generator).reshape(side)
        return out.reshape(-1, 3)

    def _subset(self, count: int, span: int, generator: torch.Generator | None) -> Array:
        if count > span:
            raise PositionError(f"Randomised(span={self.span!r}): an input needs {count} of {span}")
        source = _required(generator, "Randomised")
        drawn = torch.randperm(span, generator=source, device=source.device)[:count]
        return drawn.sort().values.double().cpu().numpy()


def _required(generator: torch.Generator | None, name: str) -> torch.Generator:
    if generator is None:
        raise PositionError(f"{name} draws at random: expected plan(..., generator=...)")
    return generator


def _draw(high: int, count: int, generator: torch.Generator | None, name: str) -> Array:
    source = _required(generator, name)
    drawn = torch.randint(high, (count,), generator=source, device=source.device)
    return drawn.cpu().numpy()


def _on_canvas(count: int, size: int) -> Array:
    """Centres of `count` grid cells on a side of `size` cells, in units of the latter."""
    return np.asarray((np.arange(count) + 0.5) * (size / count) - 0.5, dtype=np.float64)
