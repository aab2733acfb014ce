"""`watch(model, processor)`: push frames as they come, ask at any time, in memory that stays."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn

from compress.errors import StreamError
from compress.stream.asking import Question
from compress.stream.frames import checked
from compress.stream.memories import MemoryPolicy, get_memory
from compress.stream.options import Options
from compress.stream.picture import draw_memory
from compress.stream.report import StreamReport
from compress.stream.saved import read, write
from compress.stream.track import Track
from positions import StreamPositions, stream_positions


def watch(
    model: nn.Module,
    processor: Any,
    memory: str | MemoryPolicy = "foveate",
    budget: int = 4096,
    *,
    recent: int = 4,
    positions: str | StreamPositions = "original",
    instant: bool = False,
    fallback: float | None = None,
    seed: int = 0,
    beside: Watch | None = None,
) -> Watch:
    """Watch a stream of frames with a key/value cache that does not grow.

    Each step (a frame; two for Qwen2-VL and its kin) is encoded and prefilled on top of what is
    held; then older tokens are evicted until `budget` are left. Cost and memory of a step, and of
    a question, do not depend on how long the stream is.

    stream = watch(model, processor, budget=4096)
    stream.push(frames, times)
    stream.ask("What is on the table?")

    Args:
        model, processor: of a family with a `frame_layout` (see `vlm.families`).
        memory: which of the older tokens stay: a policy or its name (`compress.stream.memories`),
            or the name of a pre-LLM method.
        budget: tokens held between steps, text included. A step is held in addition while it is
            prefilled.
        recent: the newest steps, which stay whole.
        positions: where tokens stand when others were evicted, a policy or its name
            (`positions.policies`).
        instant: the recent steps are prefilled again for a question, behind the system text alone,
            so that they have not seen what was before them (DSCache, arXiv 2605.01858).
        fallback: answer from the recent steps alone, unless the entropy of the first token is above
            this many nats; then from the whole memory (OASIS, arXiv 2604.17052). None: always from
            the whole memory.
        seed: of the random numbers that policies read.
        beside: another stream of the same model. A step that both are pushed, one right after the
            other, is encoded once.

    Raises:
        StreamError, PositionError: the family takes no streams, a policy is not known, an argument
            is out of range. At the first step: the budget is too small.
    """
    policies = get_memory(memory), stream_positions(positions)
    options = Options(policies[0], budget, recent, policies[1], instant, fallback, seed)
    stream = Watch(Track(model, processor, options))
    if beside is not None:
        if beside.track.model is not model:
            raise StreamError("beside is a stream of another model: expected one of the same")
        stream.track.reader.latest = beside.track.reader.latest
    return stream


class Watch:
    """A stream that is being watched; made by `watch`. Calls from several threads are refused while
    another is at work.

    track: the state. pending: frames and times of an incomplete step. consulted: whether the last
    question was answered from the whole memory (see `fallback`); None before the first.
    """

    def __init__(self, track: Track) -> None:
        self.track = track
        self.pending: list[tuple[np.ndarray, float]] = []
        self.last_time: float | None = None
        self.consulted: bool | None = None
        self._push_ms: deque[float] = deque(maxlen=64)
        self._busy = threading.Lock()

    def push(self, frames: Any, times: Sequence[float] | float | None = None) -> None:
        """Take the next frames.

        frames: uint8 (F, H, W, 3) or (H, W, 3), a `vlm.Video`, a PIL image, or a list of images or
        arrays. times: seconds of each, increasing; by default those of the video, or one second a
        frame.

        Raises StreamError for frames of another size, times that go back, a budget that the system
        text and the recent steps do not fit in, or a call while another is at work.
        """
        with self._alone("push"):
            given, seconds = checked(frames, times, self.last_time)
            self.track.reader.check_size(given[0])
            for frame, second in zip(given, seconds, strict=True):
                self.pending.append((frame, second))
                if len(self.pending) == self.track.reader.layout.pictures:
                    pictures, at = zip(*self.pending, strict=True)
                    self.pending = []
                    began = time.perf_counter()
                    self.track.advance(np.stack(pictures), at)
                    self._push_ms.append(1e3 * (time.perf_counter() - began))
                self.last_time = second

    def ask(self, question: str, max_new_tokens: int = 64, streamer: Any = None) -> str:
        """Answer a question about the stream so far, greedily, and leave the stream as it was.

        streamer: gets each token of the answer, as in `generate`. Raises StreamError before the
        first frame, and while another call is at work.
        """
        with self._alone("ask"):
            asked = Question(self.track, self.pending, question)
            self.consulted = asked.consulted
            return asked.answer(max_new_tokens, streamer)

    def logits(self, question: str) -> Tensor:
        """(V,) logits of the first token of the answer to a question."""
        with self._alone("logits"):
            return Question(self.track, self.pending, question).logits

    def report(self) -> StreamReport:
        """What is held and what it costs."""
        track = self.track
        rows, options = track.memory.rows[0], track.options
        visual = rows.cell >= 0
        first = track.reader.number - options.recent
        kept = int(visual.sum())
        return StreamReport(
            steps=track.reader.number,
            seen=track.seen,
            kept=kept,
            recent=int((visual & (rows.step >= first)).sum()),
            evicted=track.evicted[0],
            text=len(rows) - kept,
            most=track.most,
            cache_bytes=track.memory.nbytes,
            position=track.reader.next_text(rows.held.shift),
            remembered=tuple(rows.step[visual].unique().tolist()),
            push_ms=sum(self._push_ms) / max(1, len(self._push_ms)),
            options=options,
        )

    def overlay(self, path: Any = None, limit: int = 24) -> Any:
        """Draw the remembered steps, at most `limit`, with evicted tokens dim.

        path: where to save it, if anywhere. Returns a PIL image. Raises StreamError before the
        first step.
        """
        track = self.track
        if track.reader.grid is None or not track.reader.number:
            raise StreamError("an overlay before the first step: expected push() first")
        picture = draw_memory(track.memory.rows[0], track.pictures, track.reader.grid, limit)
        if path is not None:
            picture.save(path)
        return picture

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the stream; `load` goes on from there. The model is not saved."""
        with self._alone("save"):
            write(path, self.track, self.pending, self.last_time)

    def load(self, path: str | os.PathLike[str]) -> Watch:
        """Go on from a saved stream, in place of what was pushed; returns self.

        Raises StreamError, and leaves this stream as it was, for a file that is none, or was saved
        by another model, version or options.
        """
        with self._alone("load"):
            track = Track(self.track.model, self.track.processor, self.track.options)
            self.pending, self.last_time = read(path, track)
            self.track = track
        return self

    @contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise StreamError(
                f"{what}() while another thread pushes frames or asks a question: expected one "
                "call at a time"
            )
        try:
            yield
        finally:
            self._busy.release()
