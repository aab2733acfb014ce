"""The state of a stream that is being watched, step by step."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.errors import StreamError
from compress.stream import eviction
from compress.stream.change import NEW, change_between
from compress.stream.memories import MemoryPolicy, Reduced
from compress.stream.memory import Memory, Rows
from compress.stream.options import Options
from compress.stream.proxy import proxy_attention
from compress.stream.step import Prompt, Reader, Step, prompt_of
from positions import Held

PROXY = "What is happening?"


class Track:
    """The cache of a stream and all that is needed to go on.

    reader: makes steps of frames. memory: the cache. recents: the newest steps. pictures: small
    frames of the steps that are held, by step. seen: visual tokens so far. evicted: visual tokens
    that left, for each group of layers. most: the most tokens held at one time.
    """

    def __init__(self, model: Any, processor: Any, options: Options) -> None:
        self.model, self.processor, self.options = model, processor, options
        self.before = self.prompt("?").before
        policy = options.memory
        self.reader = Reader(
            model,
            processor,
            self.prompt("?").between,
            float(len(self.before)),
            _fields_of(policy),
            _method_of(policy),
            options.positions.increment,
        )
        adapter = self.reader.adapter
        unknown = set(adapter.layer_kinds) - {"full_attention", "linear_attention"}
        if unknown:
            raise StreamError(
                f"{type(model).__name__} has decoder layers of kind {sorted(unknown)}, whose "
                "caches are cut by position: expected full or linear attention"
            )
        if options.instant and "linear_attention" in adapter.layer_kinds:
            raise StreamError(
                f"instant=True on {type(model).__name__}, whose linear layers have one state for "
                "all that they have seen: expected instant=False"
            )
        depth = len(adapter.layers)
        groups = policy.groups(depth) if self.reader.layout.one_video else [0] * depth
        self.memory = Memory(adapter, groups, options.positions.raw)
        self.generator = torch.Generator().manual_seed(options.seed)
        self.recents: deque[Step] = deque(maxlen=options.recent)
        self.pictures: dict[int, np.ndarray] = {}
        self.seen, self.most = 0, 0
        self.evicted = [0] * (max(groups) + 1)
        self.add_text(self.memory, self.before, 0.0)

    def prompt(self, question: str) -> Prompt:
        """The text around the stream."""
        return prompt_of(self.model, self.processor, question)

    # ------------------------------------------------------------ steps

    def advance(self, frames: np.ndarray, times: Sequence[float]) -> None:
        """Take one step: prefill it on top of what is held, then evict.

        frames: (pictures, H, W, 3) uint8. Raises StreamError, and holds what it did, if the budget
        cannot hold the recent steps.
        """
        reader = self.reader.copy()
        step = reader.read(frames, times)
        self._check_budget(len(step.cell))
        draw = torch.rand(len(step.cell), generator=self.generator, dtype=torch.float64)
        self.take(self.memory, step, draw)
        self.reader = reader
        self.recents.append(step)
        self.pictures[step.number] = step.picture
        self.seen += int((step.cell >= 0).sum())
        self.most = max(self.most, len(self.memory))
        self._evict()

    def take(self, memory: Memory, step: Step, draw: Tensor) -> None:
        """Prefill a step on top of a memory, next to its newest token."""
        self.settle(memory)
        count, visual = len(step.cell), step.cell >= 0
        fields = dict(step.fields)
        if "change" in self.options.memory.needs:
            fields = {"change": self._change(memory, fields["features"])}
        spread = {}
        for name, values in fields.items():
            spread[name] = values.new_zeros(count, *values.shape[1:])
            spread[name][visual.to(values.device)] = values
        held = Held(
            torch.full((count,), step.number),
            step.home,
            step.home - memory.rows[0].held.shift,
            torch.full((count,), step.advance, dtype=torch.float64),
            self.reader.time_axis,
            self.reader.one_axis,
        )
        rows = Rows(held, step.cell, draw, spread)
        memory.extend(step.embeds, [rows] * len(memory.rows), (step.deepstack, visual))

    def settle(self, memory: Memory) -> None:
        """Where keys are raw: decide the positions at which the next forward rotates them."""
        if memory.raw and memory.rows:
            held = [rows.held for rows in memory.rows]
            ahead = self.reader.next_text(held[0].shift)
            memory.settle(self.options.positions.at_forward(held, ahead))

    def add_text(self, memory: Memory, ids: Tensor, start: float) -> Tensor:
        """Prefill text (S,) from position `start` on; returns (1, S, D), normed."""
        words = self.model.get_input_embeddings()
        embeds = words(ids.to(words.weight.device))[None]
        return memory.extend(embeds, [self.text_rows(len(ids), start)] * max(1, len(memory.rows)))

    def text_rows(self, count: int, start: float) -> Rows:
        """Rows of text outside the stream."""
        at = (start + torch.arange(count, dtype=torch.float64))[:, None].expand(-1, 3)
        zeros, none = torch.zeros(count, dtype=torch.float64), torch.full((count,), -1)
        held = Held(none, at, at, zeros, self.reader.time_axis, self.reader.one_axis)
        return Rows(held, none, zeros)

    # ------------------------------------------------------------ parts

    def _check_budget(self, tokens: int) -> None:
        needed = len(self.before) + self.options.recent * tokens
        if self.options.budget < needed:
            raise StreamError(
                f"budget is {self.options.budget} tokens: expected at least {needed}, for "
                f"{len(self.before)} of text and {self.options.recent} recent steps of {tokens}"
            )

    def _change(self, memory: Memory, features: Tensor) -> Tensor:
        """(v,) the change of a step; that of the step before, which is held whole, is updated."""
        if not self.recents:
            return features.new_full((len(features),), NEW, dtype=torch.float32)
        last = self.recents[-1]
        grid = self.reader.grid or (1, len(features))
        before, after = change_between(last.fields["features"], features, grid)
        for number, rows in enumerate(memory.rows):
            own = (rows.step == last.number) & (rows.cell >= 0)
            change = rows.fields["change"].clone()
            change[own.to(change.device)] = change[own.to(change.device)].maximum(before)
            memory.rows[number] = Rows(rows.held, rows.cell, rows.draw, {"change": change})
        return after

    def _evict(self) -> None:
        memory, found = self.memory, list[Tensor]()

        def attention(group: int) -> Tensor:
            if not found:
                found.extend(self._attention())
            return found[group]

        kept = eviction.choose(
            memory.rows, self.options, self.reader.number, self.reader.grid or (1, 1), attention
        )
        if kept is None:
            return
        for group, (rows, index) in enumerate(zip(memory.rows, kept, strict=True)):
            visual = rows.cell >= 0
            self.evicted[group] += int(visual.sum()) - int(visual[index].sum())
        memory.keep(kept)
        held = {step for rows in memory.rows for step in rows.step.unique().tolist()}
        self.pictures = {n: picture for n, picture in self.pictures.items() if n in held}
        groups = [rows.held for rows in memory.rows]
        ahead = self.reader.next_text(groups[0].shift)
        limit = int(self.reader.adapter.language_model.config.max_position_embeddings)
        moved = self.options.positions.after_eviction(groups, ahead, limit)
        if moved is not None:
            memory.move(moved)

    def _attention(self) -> list[Tensor]:
        """(S,) for each group: what a question that names nothing attends to."""
        memory = self.memory
        self.settle(memory)
        start = self.reader.next_text(memory.rows[0].held.shift)
        ids = self.prompt(PROXY).after
        words = self.model.get_input_embeddings()
        embeds = words(ids.to(words.weight.device))[None]
        rows = [self.text_rows(len(ids), start)] * len(memory.rows)
        return proxy_attention(memory.rotated(), embeds, rows)


def _fields_of(policy: MemoryPolicy) -> frozenset[str]:
    """Fields that a step has to bring."""
    change = {"features"} if "change" in policy.needs else set()
    return (policy.needs - {"change"}) | change


def _method_of(policy: MemoryPolicy) -> Any:
    """The method under which the vision encoder's scores are read."""
    return policy.method if isinstance(policy, Reduced) else "foveate"
