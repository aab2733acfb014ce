"""Chat-UniVi: clusters of clusters, at three scales; videos by events."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import accumulate, zip_longest
from typing import ClassVar

import torch
from torch import Tensor

from compress import ops
from compress.methods.base import Method
from compress.ops import windows
from compress.tokens import Reduction, VisualTokens


@dataclass(frozen=True)
class ChatUniVi(Method):
    """Chat-UniVi (CVPR 2024, arXiv 2311.08046, section 3; code PKU-YuanGroup/Chat-UniVi).

    Image: DPC-KNN to 4 parts, those to 2 parts, those to 1 part of the count (64, 32, 16 of 112);
    the rows of all three scales are kept, the finest first. Video of more than two frames: frames
    are clustered by their means into events, a sixteenth of their number (`events`); each frame has
    the three scales, and at each scale the rows of an event's frames are clustered together, so
    that an event has an image's number of rows. Events follow each other by first frame; frames of
    one need not be consecutive.

    A token is in a row of each scale: `assign` has the finest, `more` the others, and sizes count
    it once a scale. Rows ascend within a scale only. Departures from the released code: means
    are weighted by size (it averages averages), ties go to the lower index (it adds noise). If an
    event's finest scale would exceed the tokens of a frame, there are more events. An event of more
    than 2,048 tokens is first clustered in windows of whole frames, to 2,048 in all, so that time
    and memory stay linear in the length of a video.
    """

    features_from: ClassVar[str] = "pre_projector"
    repeats_anchors: ClassVar[bool] = True

    neighbours: int = 5
    later_neighbours: int = 3
    events: float = 1 / 16

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("neighbours", "later_neighbours"):
            if getattr(self, name) < 1:
                raise ValueError(f"ChatUniVi: {name} is {getattr(self, name)}; at least 1")
        if not 0 < self.events <= 1:
            raise ValueError(f"ChatUniVi: events is {self.events}; it must be in (0, 1]")

    @property
    def ordered(self) -> bool:
        return False

    @staticmethod
    def scales(keep: int) -> list[int]:
        """Rows of each scale, finest first: 4, 2 and 1 parts of seven."""
        coarse, middle = keep // 7, 2 * keep // 7
        return [count for count in (keep - middle - coarse, middle, coarse) if count]

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        if tokens.grid[0] <= 2:
            levels = self._levels(tokens.features, self.scales(keep))
            starts = accumulate((level.count for level in levels), initial=0)
            rows = [level.assign + start for level, start in zip(levels, starts, strict=False)]
            return _joined(levels, rows, 1)
        samples = [self._video(x[None], tokens.grid, keep) for x in tokens.features]
        maps = zip(*((sample.assign, *sample.more) for sample in samples), strict=True)
        return _joined(samples, [torch.cat(level) for level in maps], 0)

    def _cluster(self, x: Tensor, size: Tensor | None, count: int, scale: int) -> Reduction:
        if count == x.shape[1]:
            return Reduction.identity(x, size)
        neighbours = self.later_neighbours if scale else self.neighbours
        centres, assign = ops.dpc_knn(x, count, neighbours)
        return ops.merge(x, centres, assign, size=size)

    def _joint(self, x: Tensor, size: Tensor, count: int, scale: int, frames: int) -> Reduction:
        """The tokens of an event's frames (1, n, D) clustered together."""
        most = max(count, windows.WINDOW // 4)
        if x.shape[1] <= most:
            return self._cluster(x, size, count, scale)

        def alone(part: VisualTokens, keep: int) -> Reduction:
            return self._cluster(part.features, part.size, keep, scale)

        whole = VisualTokens(x, (frames, 1, x.shape[1] // frames), size=size)
        first = windows.by_window(whole, most, alone, most)
        return first.then(self._cluster(first.features, first.size, count, scale))

    def _levels(self, x: Tensor, counts: list[int]) -> list[Reduction]:
        """Reductions of x (B, n, D) to each count, each a clustering of the one before."""
        levels = [self._cluster(x, None, counts[0], 0)]
        for scale, count in enumerate(counts[1:], 1):
            last = levels[-1]
            levels.append(last.then(self._cluster(last.features, last.size, count, scale)))
        return levels

    def _events(self, x: Tensor, count: int) -> list[list[int]]:
        """Frames of each event, from frame means x (1, T, D); by first frame."""
        if count == x.shape[1]:
            return [[frame] for frame in range(count)]
        groups: dict[int, list[int]] = {}
        for frame, event in enumerate(ops.dpc_knn(x, count, self.neighbours)[1][0].tolist()):
            groups.setdefault(event, []).append(frame)
        return list(groups.values())

    def _video(self, x: Tensor, grid: tuple[int, int, int], keep: int) -> Reduction:
        """One video, x (1, N, D)."""
        t, n = grid[0], grid[1] * grid[2]
        least = min(keep, max(1, math.ceil(t * self.events)))
        count = next(e for e in range(least, t + 1) if self.scales(-(-keep // e))[0] <= n)
        frames = x.unflatten(1, (t, n))[0]
        wanted = [self.scales(share) for share in windows.shares(keep, count)]
        most = [max(counts) for counts in zip_longest(*wanted, fillvalue=0)]
        levels = self._levels(frames, most)
        maps = [torch.full((1, t * n), -1, device=x.device) for _ in most]
        parts, row = list[Reduction](), 0
        mean = ops.wide(frames).mean(1)[None]
        for counts, event in zip(wanted, self._events(mean, count), strict=True):
            where = ops.on_device(event, x.device)
            start = torch.arange(len(event), device=x.device)[:, None]
            index = (where[:, None] * n + torch.arange(n, device=x.device)).flatten()
            for scale, number in enumerate(counts):
                level = levels[scale]
                size = level.size[where].reshape(1, -1)
                x = level.features[where].flatten(0, 1)[None]
                joint = self._joint(x, size, number, scale, len(event))
                token = (level.assign[where] + start * most[scale]).flatten()
                maps[scale][0, index] = joint.assign[0, token] + row
                anchor = (level.anchor[where] + where[:, None] * n).reshape(1, -1)
                parts.append(replace(joint, anchor=anchor.gather(1, joint.anchor)))
                row += number
        return _joined(parts, maps, 1)


def _joined(parts: list[Reduction], maps: list[Tensor], axis: int) -> Reduction:
    """Rows of several reductions as one, with maps of the tokens to them, the finest first."""
    return Reduction(
        torch.cat([part.features for part in parts], axis),
        maps[0],
        torch.cat([part.anchor for part in parts], axis),
        torch.cat([part.size for part in parts], axis),
        tuple(maps[1:]),
    )
