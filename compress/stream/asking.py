"""A question about a stream, on a copy of its memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.errors import StreamError
from compress.stream.memory import Memory
from compress.stream.step import Step
from compress.stream.track import Track


class Question:
    """A question that has been read; the stream is as it was.

    logits: (V,) of the first token of the answer. consulted: whether the whole memory was read,
    False where the recent steps were enough.
    """

    @torch.no_grad()
    def __init__(
        self, track: Track, pending: Sequence[tuple[np.ndarray, float]], question: str
    ) -> None:
        self.track = track
        memory, recents = track.memory.fork(), list(track.recents)
        reader = track.reader
        if pending:  # an incomplete step is filled with its last frame, as processors do
            frames, times = map(list, zip(*pending, strict=True))
            missing = reader.layout.pictures - len(frames)
            reader = reader.copy()
            step = reader.read(
                np.stack(frames + frames[-1:] * missing), times + times[-1:] * missing
            )
            track.take(memory, step, torch.zeros(len(step.cell), dtype=torch.float64))
            recents = [*recents, step][-track.options.recent :]
        if not recents:
            raise StreamError("a question before the first frame: expected push() before ask()")
        track.settle(memory)
        memory = memory.rotated()
        ahead = reader.next_text(memory.rows[0].held.shift)
        self._start = track.options.positions.question_at(ahead, reader.start)
        self._ids = track.prompt(question).after
        if track.options.instant:
            memory = with_instant(track, memory, recents)
        self.consulted = True
        if track.options.fallback is not None:
            self._read(only_recent(memory, recents[0].number))
            self.consulted = entropy(self.logits) > track.options.fallback
        if self.consulted:
            self._read(memory)

    def _read(self, memory: Memory) -> None:
        """Prefill the question on a fork of a memory."""
        self._memory = memory.fork()
        hidden = self.track.add_text(self._memory, self._ids, self._start)
        self._at = self._start + len(self._ids)
        self.logits = self._head(hidden)

    def _head(self, hidden: Tensor) -> Tensor:
        head = self.track.model.get_output_embeddings()
        logits: Tensor = head(hidden[:, -1:])[0, 0]
        return logits

    @torch.no_grad()
    def answer(self, max_new_tokens: int, streamer: Any = None) -> str:
        """The answer, greedily decoded. streamer: gets each token and `end()`."""
        tokenizer = self.track.processor.tokenizer
        ends = self.track.model.generation_config.eos_token_id
        ends = set(ends) if isinstance(ends, list) else {ends, tokenizer.eos_token_id}
        memory, logits, ids = self._memory.fork(), self.logits, list[int]()
        while len(ids) < max_new_tokens:
            token = int(logits.argmax())
            ids.append(token)
            if streamer is not None:
                streamer.put(torch.tensor([token]))
            if token in ends or len(ids) == max_new_tokens:
                break
            at = self._at + len(ids) - 1
            logits = self._head(self.track.add_text(memory, torch.tensor([token]), at))
        if streamer is not None:
            streamer.end()
        return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def only_recent(memory: Memory, first: int) -> Memory:
    """A fork that holds the text before the stream and the steps from `first` on."""
    fork = memory.fork()
    fork.keep(
        [((rows.step < 0) | (rows.step >= first)).nonzero().flatten() for rows in memory.rows]
    )
    return fork


def with_instant(track: Track, memory: Memory, recents: Sequence[Step]) -> Memory:
    """A fork whose recent steps have seen the text before the stream, and nothing else of it.

    memory: rotated. recents: the newest steps, which are held whole.
    """
    first = recents[0].number
    fresh, past = memory.fork(), memory.fork()
    fresh.keep([(rows.step < 0).nonzero().flatten() for rows in memory.rows])
    past.keep([(rows.step < first).nonzero().flatten() for rows in memory.rows])
    before = len(fresh)
    for step in recents:
        rows = [one.gather((one.step == step.number).nonzero().flatten()) for one in memory.rows]
        fresh.extend(step.embeds, rows, (step.deepstack, step.cell >= 0))
    past.append(fresh, before)
    return past


def entropy(logits: Tensor) -> float:
    """Nats of the softmax over (V,) logits."""
    return float(torch.distributions.Categorical(logits=logits.float()).entropy())
