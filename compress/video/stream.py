"""Reduces a video of any length while it is read, in bounded memory."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from compress import ops
from compress.methods import Method, get_method
from compress.tokens import Reduction, VisualTokens

LEAST = 8  # the least tokens of a stretch that are reduced together when the share shrinks

# Fields of tokens besides features. A kept token has those of its anchor.
_OWN = ("keys", "saliency", "shallow_saliency")


@dataclass(frozen=True)
class Kept:
    """M tokens of a video, in order.

    features: (M, D), in the dtype of the input. places: (M, 3) int64, frame, row and column of the
    anchor of each. size: (M,) int64, the dense tokens merged in it.
    keys, saliency, shallow_saliency, pre_projector: as in `VisualTokens`, without the batch
    dimension; None if not given.
    """

    features: Tensor
    places: Tensor
    size: Tensor
    keys: Tensor | None = None
    saliency: Tensor | None = None
    shallow_saliency: Tensor | None = None
    pre_projector: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)

    @classmethod
    def join(cls, parts: Sequence[Kept]) -> Kept:
        """Consecutive stretches of a video as one."""
        names = [name for name, value in vars(parts[0]).items() if value is not None]
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})

    def copy(self) -> Kept:
        """A copy in memory of its own."""
        return Kept(**{name: x.clone() for name, x in vars(self).items() if x is not None})

    def tokens(self) -> VisualTokens:
        """The tokens in the form that a method takes, with a batch of one."""
        names = ("features", "size", "pre_projector", *_OWN)
        given = {name: value[None] for name in names if (value := getattr(self, name)) is not None}
        return VisualTokens(grid=(1, 1, len(self)), **given)

    def reduced(self, reduction: Reduction, first: bool) -> Kept:
        """The kept tokens after a reduction of these tokens.

        first: whether these are dense tokens, whose reduced features are those of the method. Later
        features are means over the merged tokens, weighted by size with every method.
        """
        anchor = reduction.anchor[0]
        size = _summed(self.size[:, None], reduction)[:, 0]
        alone = (size == self.size[anchor])[:, None]

        def mean(x: Tensor) -> Tensor:
            total = _summed(ops.wide(x) * self.size[:, None], reduction)
            return torch.where(alone, x[anchor], (total / size[:, None]).to(x.dtype))

        features = reduction.features[0] if first else mean(self.features)
        own = {name: x[anchor] for name in _OWN if (x := getattr(self, name)) is not None}
        pre_projector = None if self.pre_projector is None else mean(self.pre_projector)
        return Kept(features, self.places[anchor], size, pre_projector=pre_projector, **own)


def _summed(x: Tensor, reduction: Reduction) -> Tensor:
    """(N, C) -> (M, C): sums over the members of each row."""
    total = x.new_zeros(1, reduction.count, x.shape[1])
    for level in (reduction.assign, *reduction.more):
        total = total + ops.segment_sum(x[None], level, reduction.count)
    return total[0]


class Stream:
    """Reduces a video while it is read, to at most `budget` tokens.

    The method reduces each window of `window` frames to its share of the budget. If the length is
    not known beforehand, or turns out longer, the share starts at 1 and is multiplied by `shrink`
    whenever the budget would be exceeded. The kept tokens are then reduced again, stretch by
    stretch (`LEAST` tokens or more at a time), weighted by size. So all parts of the video have the
    same share of the tokens at any time. At the end of a video of unknown length, at least about
    `shrink` of the budget is used.

    Result and cost do not depend on how the frames are divided over calls of `add`. At most
    `budget` tokens and one window of dense tokens are held. Time is linear in the frames.

    stream = Stream("foveate", budget=8192, total=3600)
    for tokens in ...:
        stream.add(tokens)
    kept = stream.result()

    method: a name or an instance, of which the pre-LLM part is used.
    budget: tokens, at least 2. total: the number of all frames, if known.
    text_query: (Q, D) text embeddings, for methods that read them.
    generator: for methods that draw.
    """

    def __init__(
        self,
        method: str | Method,
        budget: int,
        *,
        total: int | None = None,
        window: int = 8,
        shrink: float = 0.75,
        text_query: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.method = get_method(method)
        for name, value, least in (
            ("budget", budget, 2),
            ("total", total, 1),
            ("window", window, 1),
        ):
            if value is None and name == "total":
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} is {value!r}: expected an int")
            if value < least:
                raise ValueError(f"{name} is {value}: expected at least {least}")
        if not 0 < shrink < 1:
            raise ValueError(f"shrink is {shrink}: expected a number between 0 and 1")
        if self.method.in_llm_only:
            raise ValueError(f"{self.method!r} reduces nothing before the language model")
        if "attention" in self.method.needs:
            raise ValueError(
                f"{self.method!r} needs the attention between all tokens, which a stream does not "
                "keep: expected a method that reads features, keys or saliency"
            )
        self.budget, self.total, self.window = budget, total, window
        self.shrink = Fraction(shrink).limit_denominator(1000)
        self.text_query, self.generator = text_query, generator
        self.frames = 0  # added so far
        self.most = 0  # most tokens held at once so far
        self._grid: tuple[int, int] | None = None
        self._share = Fraction(1)  # kept tokens a dense token
        self._done: list[tuple[int, int]] = []  # of each stretch: dense tokens, kept tokens
        # One block of memory for all kept tokens. Many small ones between large temporary blocks
        # would keep the allocator from returning these.
        self._store: dict[str, Tensor] = {}
        self._waiting: list[Kept] = []  # frames of an incomplete window

    def __len__(self) -> int:
        """Tokens held: those kept, and the dense tokens of an incomplete window."""
        return self._kept + sum(map(len, self._waiting))

    @property
    def _kept(self) -> int:
        return sum(kept for _, kept in self._done)

    def add(self, tokens: VisualTokens) -> None:
        """Add the next frames: (1, f * h * w, D) in a grid (f, h, w), on any device.

        Raises ValueError if the batch is not 1, or if the grid of a frame changes.
        """
        count, *grid = tokens.grid
        self._grid = self._grid or (grid[0], grid[1])
        if len(tokens.features) != 1 or tuple(grid) != self._grid:
            raise ValueError(
                f"features {tuple(tokens.features.shape)} in frames of {tuple(grid)} tokens: "
                f"expected one video in frames of {self._grid} tokens"
            )
        if self.total is not None:
            self._share = min(self._share, Fraction(self.budget, self.total * math.prod(grid)))
        dense = math.prod(grid)
        names = ("features", "pre_projector", *_OWN)
        fields = {n: x[0] for n in names if (x := getattr(tokens, n)) is not None}
        at, first = 0, torch.tensor([self.frames, 0, 0]).to(tokens.grid_cells)
        while at < count:
            waiting = sum(map(len, self._waiting)) // dense
            step = min(self.window - waiting, count - at)
            part = slice(at * dense, (at + step) * dense)
            places = tokens.grid_cells[part] + first
            size = torch.ones_like(places[:, 0])
            # A copy: a view would keep the whole chunk alive.
            own = {name: x[part].clone() for name, x in fields.items()}
            self._waiting.append(Kept(places=places, size=size, **own))
            at, self.frames = at + step, self.frames + step
            self.most = max(self.most, len(self))
            if waiting + step == self.window:
                self._reduce()

    def result(self) -> Kept:
        """The kept tokens of all frames so far. More frames may be added afterwards.

        Raises ValueError if no frame was added.
        """
        if not self.frames:
            raise ValueError("no frames were added: expected one or more")
        last = copy.copy(self)
        last._done, last._waiting = list(self._done), list(self._waiting)
        last._store = {name: x[: self._kept].clone() for name, x in self._store.items()}
        if last._waiting:
            last._reduce()
        return last._held(0, last._kept)

    def _reduce(self) -> None:
        """Reduce the waiting window to its share."""
        window, self._waiting = Kept.join(self._waiting), []
        before = sum(dense for dense, _ in self._done)
        stop = before + len(window)
        keep = self._count(before, stop)
        if self._kept + keep > self.budget:
            while self._share * stop > self.budget:
                self._share *= self.shrink
            self._thin()
            keep = self._count(before, stop)
        height, width = self._grid or (1, 1)
        grid = (len(window) // (height * width), height, width)
        self._put(len(window), self._cut(window, keep, grid))
        self.most = max(self.most, len(self))

    def _held(self, start: int, stop: int) -> Kept:
        """The kept tokens from `start` to `stop` - 1, as a view of the store."""
        return Kept(**{name: x[start:stop] for name, x in self._store.items()})

    def _put(self, dense: int, kept: Kept) -> None:
        """Append the kept tokens of the next stretch to the store."""
        start, stop = self._kept, self._kept + len(kept)
        for name, x in vars(kept).items():
            if x is None:
                continue
            old = self._store.get(name, x[:0])
            if stop > len(old):
                room = min(max(stop, 2 * len(old)), max(stop, self.budget))
                self._store[name] = x.new_empty(room, *x.shape[1:])
                self._store[name][:start] = old[:start]
            self._store[name][start:stop] = x
        self._done.append((dense, len(kept)))

    def _count(self, start: int, stop: int) -> int:
        """Tokens to keep of start..stop-1: differences of rounded-down sums, which add up."""
        return max(1, math.floor(self._share * stop) - math.floor(self._share * start))

    def _thin(self) -> None:
        """Reduce all kept tokens to the current share, in stretches of at least `LEAST` tokens."""
        groups: list[list[tuple[int, int]]] = []
        counts: list[int] = []
        start = stop = 0
        for part in self._done:
            stop += part[0]
            if not groups or counts[-1] >= LEAST:
                groups.append([])
                counts.append(0)
                start = stop - part[0]
            groups[-1].append(part)
            counts[-1] = math.floor(self._share * stop) - math.floor(self._share * start)
        if len(groups) > 1 and counts[-1] < LEAST:
            groups[-2:] = [groups[-2] + groups[-1]]
            counts[-2:] = [counts[-2] + counts[-1]]
        self._done = []
        at = 0
        for group, count in zip(groups, counts, strict=True):
            first, at = at, at + sum(kept for _, kept in group)
            # A copy, as the store is overwritten while it is read.
            kept = self._cut(self._held(first, at), max(1, count)).copy()
            self._put(sum(dense for dense, _ in group), kept)

    def _cut(self, kept: Kept, keep: int, grid: tuple[int, int, int] | None = None) -> Kept:
        """Reduce to `keep` tokens, or keep all if there are fewer. grid: of dense tokens."""
        if keep >= len(kept):
            return kept
        tokens = kept.tokens()
        if grid is not None:
            tokens = replace(tokens, grid=grid)
        if self.text_query is not None and "text_query" in self.method.needs | self.method.wants:
            tokens = replace(tokens, text_query=self.text_query.to(tokens.features)[None])
        with torch.no_grad():
            reduction = self.method.reduce(tokens, keep, self.generator)
        return kept.reduced(reduction, first=grid is not None)
