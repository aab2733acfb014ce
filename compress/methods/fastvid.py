"""FastVID: a video cut into segments, salient tokens kept, the context merged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from compress import ops
from compress.methods.base import Method, choose
from compress.ops.windows import cut_after
from compress.tokens import Reduction, VisualTokens


@dataclass(frozen=True)
class FastVID(Method):
    """FastVID (NeurIPS 2025, section 3; code LunarShen/FastVID), for video.

    The video is cut at the `cuts` least similar frame transitions and wherever the cosine of two
    frames is below `threshold`. A share `salient` of the tokens are the most salient of each frame.
    The others are anchors in every `every`-th frame of a segment, counted from its end: those with
    the best DPC-KNN scores in their frame.

    merge: "mean": every other token is merged into the anchor of its segment with the most similar
        feature, as a mean; scores are computed among all tokens of a frame. "released": each
        anchor frame merges the whole segment but for the salient tokens, among which scores are
        computed too; an anchor becomes 0.6 of itself and 0.4 of the mean of its cluster, itself
        included (the released weight max(1 / (n + 1), 0.6) is always 0.6). Nothing is conserved, a
        token is merged once an anchor frame, and `assign` names the most similar anchor of all.

    Departures: counts are exact over the video; density ties go to the lower index; an image is
    one segment of one frame; frames are compared by their mean features and saliency is that of the
    vision encoder (the released code takes both from SigLIP's pooling head); an anchor is in its
    own cluster even if another is equal to it. A video over 8,192 tokens is cut into windows first.
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
        cut = cut_after(features, self.threshold, self.cuts)
        return torch.nn.functional.pad(cut.long().cumsum(1), (1, 0))

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        with torch.no_grad():
            salient, anchors, segment, level = self._choose(tokens, keep)
            index = torch.cat([anchors, salient], 1)
            assign = _within(tokens.features, anchors, segment, segment.gather(1, anchors))
        if anchors.shape[1] == 0:
            return ops.prune(tokens.features, index)
        merged = ops.merge(tokens.features, index, assign)
        if self.merge == "mean":
            return merged
        return self._released(tokens, merged, salient, segment, level)

    def _choose(self, tokens: VisualTokens, keep: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Salient tokens, anchors; of each token its segment, and the number of its anchor frame.

        They are numbered from the end of the segment: 0, 1, ...; other frames are -1.
        """
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
        others = torch.ones(b, n, dtype=torch.bool, device=frames.device).scatter(1, salient, False)
        among = others.reshape(b * t, h * w) if self.merge == "released" else None
        peak = ops.density_peaks(frames.flatten(0, 1), self.neighbours, among).reshape(b, n)
        peak = peak.clamp(min=-1e30).scatter(1, salient, -torch.inf).unflatten(1, (t, h * w))
        anchors = ops.by_quota(peak, quota, keep - count, every=False)
        level = torch.where(holds, from_end // self.every, -1)
        tokens_of = torch.arange(n, device=frames.device) // (h * w)
        return salient, anchors, segment[:, tokens_of], level[:, tokens_of]

    def _released(
        self,
        tokens: VisualTokens,
        merged: Reduction,
        salient: Tensor,
        segment: Tensor,
        level: Tensor,
    ) -> Reduction:
        x, rows = ops.wide(tokens.features), merged.anchor
        total, count = torch.zeros_like(ops.gather(x, rows)), x.new_zeros(*rows.shape, 1)
        is_salient = torch.zeros_like(segment).scatter(1, salient, 1).bool()
        for number in range(-(-tokens.grid[0] // self.every)):
            serves = (level.gather(1, rows) == number) & ~is_salient.gather(1, rows)
            theirs = torch.where(serves, segment.gather(1, rows), -1)
            assign = _within(tokens.features, rows, segment, theirs)
            own = torch.arange(merged.count, device=rows.device).expand_as(rows)
            own = torch.where(serves, own, assign.gather(1, rows))
            assign = assign.scatter(1, rows, own).masked_fill(is_salient, -1)
            total = total + ops.segment_sum(x, assign, merged.count)
            count = count + ops.segment_sum(torch.ones_like(x[..., :1]), assign, merged.count)
        anchor = ops.gather(x, rows)
        mixed = torch.where(count > 0, 0.6 * anchor + 0.4 * total / count.clamp(min=1), anchor)
        return replace(merged, features=mixed.to(tokens.features.dtype))


def _within(features: Tensor, anchors: Tensor, segment: Tensor, theirs: Tensor) -> Tensor:
    """assign (B, N): the most similar anchor (B, M) of the same segment, -1 if there is none.

    segment: (B, N) of the tokens; theirs: (B, M) of the anchors, -1 for one that takes no part.
    """
    if anchors.shape[1] == 0:
        return torch.full_like(segment, -1)
    vectors = ops.unit(features)
    targets = ops.gather(vectors, anchors)
    step = ops.rows_at_once(anchors.numel())
    parts = []
    for x, own in zip(vectors.split(step, 1), segment.split(step, 1), strict=True):
        near = (x @ targets.mT).masked_fill(own[..., None] != theirs[:, None], -torch.inf)
        best = near.max(2)
        parts.append(torch.where(best.values > -torch.inf, best.indices, -1))
    return torch.cat(parts, 1)
