"""Frames become steps: embeddings, original positions and what memory policies read of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BatchFeature

from compress.errors import StreamError
from compress.runtime.attach import compress
from compress.runtime.encoded import Encoded
from positions import ChannelTable
from vlm.families import ModelAdapter, adapter_of
from vlm.inputs import FrameLayout


@dataclass(frozen=True)
class Prompt:
    """The text around a stream, as token ids (S,).

    before: before the stream. between: between two of its steps. after: after it, the question
    included.
    """

    before: Tensor
    between: Tensor
    after: Tensor


def layout_of(model: nn.Module) -> FrameLayout:
    """How a model's frames stand in a prompt; StreamError for a family that takes no streams."""
    adapter = adapter_of(model)
    layout = adapter.frame_layout
    if layout is None:
        raise StreamError(
            f"{type(model).__name__} is of the family {adapter.name!r}, whose frames cannot be "
            "pushed one by one: expected Foveate's own model with one expert and sequential or "
            "M-RoPE positions, LLaVA-1.5, Qwen2-VL, Qwen2.5-VL, Qwen3-VL or Qwen3.5"
        )
    return layout


def prompt_of(model: nn.Module, processor: Any, question: str) -> Prompt:
    """The chat prompt of one user turn: a stream, then a question."""
    layout, adapter = layout_of(model), adapter_of(model)
    placeholder = adapter.placeholder(layout.kind)
    times = 1 if layout.one_video or layout.stamped else 2
    content = [{"type": layout.kind}] * times + [{"type": "text", "text": question}]
    chat = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    ids = processor.tokenizer(text, return_tensors="pt")["input_ids"][0]
    at = (ids == placeholder).nonzero().flatten().tolist()
    if len(at) != times:
        raise StreamError(
            f"question {question!r} makes a prompt with {len(at)} placeholders of a {layout.kind}: "
            f"expected {times}, and a question without placeholders"
        )
    between = ids[at[0] + 1 : at[-1]]
    return Prompt(ids[: at[0]], between, ids[at[-1] + 1 :])


@dataclass(frozen=True)
class Step:
    """One step of a stream: n tokens, of which v are visual.

    number: counted from 0. time: seconds. embeds: (1, n, D). deepstack: what is added to the visual
    tokens after the first decoder layers, (v, D) each. cell: (n,) int64, raster index in the grid
    of the step, -1 for text. home: (n, 3) float64, original positions. advance: as in
    `positions.Held`. fields: for each visual token, (v, ...), what the memory policy reads.
    picture: the first frame, small, uint8 (H, W, 3).
    """

    number: int
    time: float
    embeds: Tensor
    deepstack: tuple[Tensor, ...]
    cell: Tensor
    home: Tensor
    advance: float
    fields: dict[str, Tensor]
    picture: np.ndarray


@dataclass
class Encoding:
    """What the vision encoder made of the frames of one step.

    features: (v, D). deepstack, fields: as in `Step`. grid: (h, w).
    """

    frames: np.ndarray
    features: Tensor
    deepstack: tuple[Tensor, ...]
    fields: dict[str, Tensor]
    grid: tuple[int, int]


@dataclass
class Reader:
    """Makes steps of frames, in order. A copy goes on independently of the original.

    needs: names of fields of `VisualTokens` that steps have to bring. method: the method for which
    they are read, None where only "features" are. increment: of visual positions. between: (b,)
    int64, the text between two steps. start: where the stream begins, in positions. grid: (h, w) of
    a step's tokens, None before the first; size: (H, W) of a frame in pixels. cursor: the position
    after the last step, where steps follow one another. latest: the newest encoding, in a list that
    readers of the same frames share.
    """

    model: Any
    processor: Any
    between: Tensor
    start: float
    needs: frozenset[str] = frozenset()
    method: Any = None
    increment: float = 1.0
    number: int = 0
    cursor: float = 0.0
    first_time: float = 0.0
    offset: float = 0.0
    grid: tuple[int, int] | None = None
    size: tuple[int, int] | None = None
    latest: list[Encoding] = field(default_factory=list, repr=False)
    adapter: ModelAdapter = field(init=False, repr=False)
    layout: FrameLayout = field(init=False, repr=False)
    one_axis: bool = field(init=False)

    def __post_init__(self) -> None:
        self.adapter = adapter_of(self.model)
        self.layout = layout_of(self.model)
        self.one_axis = ChannelTable.of(self.adapter.rotary).axes == 1
        if not self.number:
            self.cursor = self.start

    def copy(self) -> Reader:
        """A copy that reads on without moving this one."""
        return copy.copy(self)

    @property
    def time_axis(self) -> bool:
        """Whether only the time axis tells steps apart."""
        return self.layout.one_video and not self.one_axis

    @torch.no_grad()
    def read(self, frames: np.ndarray, times: Sequence[float]) -> Step:
        """The next step. frames: (pictures, H, W, 3) uint8. times: seconds of each."""
        time = float(np.mean(times)) if self.layout.stamped else float(times[0])
        seen = self._seen(frames)
        self.grid, features, deepstack = seen.grid, seen.features, seen.deepstack
        fields = {name: x for name, x in seen.fields.items() if name in self.needs}
        before, after = self._words(time)
        words = self.model.get_input_embeddings()
        device = words.weight.device
        parts = [words(ids.to(device)) for ids in (before, after)]
        embeds = torch.cat([parts[0], features.to(parts[0]), parts[1]])[None]
        visual = torch.arange(len(features))
        cell = torch.cat([torch.full((len(before),), -1), visual, torch.full((len(after),), -1)])
        if not self.number:
            self.first_time = time
        home, advance = self._place(len(before), len(after), time)
        self.number += 1
        step = Step(self.number - 1, time, embeds, deepstack, cell, home, advance, fields, frames)
        return replace(step, picture=_small(frames[0]))

    def next_text(self, shift: Tensor) -> float:
        """Where text after the stream starts, if its newest token stands at its original position
        less `shift` (3,)."""
        if not self.number:
            return self.start
        if not self.time_axis:
            return math.ceil(self.cursor - float(shift[0]) - 1e-9)
        height, width = self.grid  # type: ignore[misc]
        space = self.start + max(height, width)
        if not self.layout.clears_time:
            return space
        return max(space, math.ceil(self.start + self.offset - float(shift[0])) + 1)

    # ------------------------------------------------------------ parts

    def _words(self, time: float) -> tuple[Tensor, Tensor]:
        """Ids of the text before and after a step."""
        none = self.between.new_zeros(0)
        if not self.layout.stamped:
            return (self.between if self.number and not self.layout.one_video else none), none
        before, after = self.adapter.frame_words(time)
        ids = [
            self.processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")
            for text in (before, after)
        ]
        return ids[0]["input_ids"][0], ids[1]["input_ids"][0]

    def _place(self, before: int, after: int, time: float) -> tuple[Tensor, float]:
        """(n, 3) float64 original positions of a step, and its advance."""
        height, width = self.grid  # type: ignore[misc]
        count, step = height * width, self.increment
        if self.time_axis:
            offset, seconds = float(self.number), time - self.first_time
            if self.layout.rate is not None:  # whole positions, as the models were trained
                offset = math.floor(seconds * self.layout.rate + 1e-6)
            advance, self.offset = step * offset - self.offset, step * offset
            home = self.start + _grid(height, width)
            home[:, 0] += self.offset
            return home, advance if self.number else 0.0
        begin = self.cursor
        text = begin + torch.arange(before, dtype=torch.float64)
        at = begin + before
        if self.one_axis:
            visual = (at - 1 + step * torch.arange(1, count + 1, dtype=torch.float64))[:, None]
            visual = visual.expand(-1, 3)
            at = at - 1 + step * count + 1
        else:
            visual = at + step * _grid(height, width)
            at = at + math.ceil(step * max(height, width))
        if after:
            at = math.ceil(at)
        behind = at + torch.arange(after, dtype=torch.float64)
        self.cursor = at + after
        parts = [text[:, None].expand(-1, 3), visual, behind[:, None].expand(-1, 3)]
        return torch.cat(parts), self.cursor - begin

    def _seen(self, frames: np.ndarray) -> Encoding:
        """The encoding of a step; that of another reader, if it has just seen the same frames."""
        for known in self.latest:
            if self.needs <= known.fields.keys() and np.array_equal(known.frames, frames):
                return known
        self.latest[:] = [self._encode(frames)]
        return self.latest[0]

    def _encode(self, frames: np.ndarray) -> Encoding:
        """Run the vision encoder."""
        self.check_size(frames[0])
        kind, call = self.adapter.frames_call(self.processor, frames)
        parameter = self.model.get_input_embeddings().weight
        given = BatchFeature(call).to(parameter.device, parameter.dtype)
        scored = bool(self.needs - {"features"})
        with compress(self.model, self.method, 1.0) if scored else nullcontext():
            output = getattr(self.adapter.core, f"get_{kind}_features")(**given, return_dict=True)
        (item,) = self.adapter.inputs(kind, dict(given))
        (view,) = item.views
        features = torch.cat([x.reshape(-1, x.shape[-1]) for x in output.pooler_output])
        grid = (view.grid[1], view.grid[2])
        if view.grid[0] != 1 or self.grid not in (None, grid):
            raise StreamError(
                f"frames of {frames.shape[2]} x {frames.shape[1]} pixels make grids of {view.grid} "
                f"tokens: expected {(1, *(self.grid or grid))}"
            )
        added = getattr(output, "deepstack_features", None) or ()
        deepstack = tuple(torch.cat(list(layer)) for layer in added)
        fields: dict[str, Tensor] = {}
        if scored and (encoded := Encoded.of(output)) is not None:
            fields = {n: x for n, x in encoded.fields.items() if n in self.needs}
        if "features" in self.needs:
            fields["features"] = features
        return Encoding(frames, features, deepstack, fields, grid)

    def check_size(self, frame: np.ndarray) -> None:
        """StreamError unless a frame (H, W, 3) has the size of those before."""
        size = (frame.shape[0], frame.shape[1])
        self.size = self.size or size
        if size != self.size:
            raise StreamError(
                f"frames are {size[1]} x {size[0]} pixels and those before were {self.size[1]} x "
                f"{self.size[0]}: expected frames of one size"
            )


def _grid(height: int, width: int) -> Tensor:
    """(h * w, 3) float64: 0, row and column of each cell."""
    axes = [torch.arange(n, dtype=torch.float64) for n in (1, height, width)]
    return torch.cartesian_prod(*axes)


def _small(frame: np.ndarray, side: int = 96) -> np.ndarray:
    """A frame scaled down to a shorter side of at most `side` pixels."""
    step = max(1, min(frame.shape[:2]) // side)
    return np.ascontiguousarray(frame[::step, ::step])
