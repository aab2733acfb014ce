"""FastVID: a video cut into segments, salient tokens kept, the context merged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress import ops
from compress.methods.base import Method, choose
from compress.tokens import Reduction, VisualTokens


@dataclass(frozen=True)
class FastVID(Method):
    """FastVID (NeurIPS 2025, section 3; code LunarShen/FastVID), for video.

    The video is cut at the `cuts` least similar frame transitions and wherever frames' cosine is
    below `threshold`. A share `salient` of the tokens are each frame's most salient; the others
    are anchors in every `every`-th frame of a segment, counted from its end, with the best DPC-KNN
    scores in their frame. Every cell left goes to the anchor of its segment with the most similar
    feature. merge: "mean", or "released": weight max(1 / (n + 1), 0.6) on the anchor and the
    rest on the mean of the others, which conserves nothing.

    Departures: counts are exact over the video; density ties go to the lower index; an image is
    one segment of one frame; saliency is what the vision tower gives (the released code takes
    SigLIP's pooling head). A video over 8,192 cells is cut into windows first.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"saliency"})
    pairwise: ClassVar[bool] = True

    cuts: int = 7
    threshold: float = 0.9
    salient: float = 0.6
    every: int = 4
    neighbours: int = 4
    merge: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose(self, merge=("mean", "released"))
        if not 0 <= self.salient <= 1:
            raise ValueError(f"FastVID: salient is {self.salient}; it must be in 0..1")
        for name, least in (("cuts", 0), ("every", 1), ("neighbours", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"FastVID: {name} is {getattr(self, name)}; at least {least}")

    def segments(self, features: Tensor) -> Tensor:
        """(B, T, n, D) -> (B, T) int64, the segment of each frame, from 0."""
        mean = ops.unit(ops.wide(features).mean(2))
        near = (mean[:, 1:] * mean[:, :-1]).sum(2)
        cut = near < self.threshold
        cut = cut.scatter(1, ops.top(-near, min(self.cuts, near.shape[1])), True)
        return torch.nn.functional.pad(cut.long().cumsum(1), (1, 0))

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        with torch.no_grad():
            salient, anchors, assign = self._choose(tokens, keep)
        anchor = torch.cat([anchors, salient], 1)
        if anchors.shape[1] == 0:
            return ops.prune(tokens.features, anchor)
        if self.merge == "mean":
            return ops.merge(tokens.features, anchor, assign)
        added = ops.merge(tokens.features, anchor, assign, rule="add")
        own = ops.wide(ops.gather(tokens.features, added.anchor))
        rest = ops.wide(added.features) - own
        weight = (1 / added.size).clamp(min=0.6)[..., None]
        mixed = torch.where(added.size[..., None] > 1, weight * own + (1 - weight) * rest, own)
        return Reduction(mixed.to(tokens.features.dtype), added.assign, added.anchor, added.size)

    def _choose(self, tokens: VisualTokens, keep: int) -> tuple[Tensor, Tensor, Tensor]:
        t, h, w = tokens.grid
        b, n, _ = tokens.features.shape
        frames = tokens.features.unflatten(1, (t, h * w))
        even = torch.ones(b, t, device=frames.device)
        count = int(keep * self.salient)
        saliency = ops.wide(tokens.need("saliency")).unflatten(1, (t, h * w))
        salient = ops.by_quota(saliency, even * count / t, count, every=False)
        segment = self.segments(frames)
        place = torch.arange(t, device=frames.device)
        same = segment[:, :, None] == segment[:, None]
        from_end = (same & (place[:, None] < place)).sum(2)
        holds = from_end % self.every == 0
        anchor_frames = (same & holds[:, None]).sum(2)
        quota = (keep - count) * same.sum(2) / t / anchor_frames
        quota = torch.where(holds, quota, -float(n))  # other frames come last
        peak = ops.density_peaks(frames.flatten(0, 1), self.neighbours).reshape(b, n)
        peak = peak.clamp(min=-1e30).scatter(1, salient, -torch.inf).unflatten(1, (t, h * w))
        anchors = ops.by_quota(peak, quota, keep - count, every=False)
        cell = segment.repeat_interleave(h * w, 1)
        return salient, anchors, _within(tokens.features, anchors, cell)


def _within(features: Tensor, anchors: Tensor, segment: Tensor) -> Tensor:
    """assign (B, N): the most similar anchor of the same segment (B, N), -1 if it has none."""
    vectors = ops.unit(features)
    targets, theirs = ops.gather(vectors, anchors), segment.gather(1, anchors)
    step = ops.rows_at_once(anchors.numel())
    parts = []
    for x, mine in zip(vectors.split(step, 1), segment.split(step, 1), strict=True):
        near = x @ targets.transpose(1, 2)
        near = near.masked_fill(mine[..., None] != theirs[:, None], -torch.inf)
        best = near.max(2) if anchors.shape[1] else None
        if best is None:
            parts.append(mine.new_full(mine.shape, -1))
        else:
            parts.append(torch.where(best.values > -torch.inf, best.indices, -1))
    return torch.cat(parts, 1)
