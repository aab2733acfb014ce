"""Long inputs in parts: a video frame by frame, or in windows of whole frames."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch

from compress.tokens import Reduction, VisualTokens

CELLS = 8192  # most cells of a video that a method with an N x N table sees at once

Pick = Callable[[VisualTokens, int], Reduction]


def shares(total: int, parts: int) -> list[int]:
    """`total` dealt over `parts` as evenly as whole numbers allow, the larger ones spread out."""
    return [total * (i + 1) // parts - total * i // parts for i in range(parts)]


def reduce_part(part: VisualTokens, count: int, pick: Pick) -> Reduction:
    """`pick`, but every token kept is the identity."""
    return Reduction.identity(part.features) if count == part.count else pick(part, count)


def by_frame(tokens: VisualTokens, keep: int, pick: Pick) -> Reduction:
    """Each frame reduced alone to its share of `keep`; frames of equal share form one batch."""
    t, h, w = tokens.grid
    b, n, d = tokens.features.shape
    counts = torch.tensor(shares(keep, t))
    first = counts.cumsum(0) - counts  # first output row of each frame
    device = tokens.features.device
    assign = torch.full((b, t, h * w), -1, dtype=torch.int64, device=device)
    pieces: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    rows: list[int] = []
    for count in sorted(set(counts.tolist())):
        frames = (counts == count).nonzero().flatten()
        if count == 0:
            continue
        part = reduce_part(tokens.fold(frames.tolist()), count, pick)
        where = frames.to(device)
        start = first.to(device)[where].reshape(1, -1, 1)
        own = part.assign.reshape(b, len(frames), h * w)
        assign[:, where] = torch.where(own < 0, own, own + start)
        anchor = part.anchor.reshape(b, len(frames), count) + where.reshape(1, -1, 1) * h * w
        pieces.append(
            (part.features.reshape(b, -1, d), anchor.flatten(1), part.size.reshape(b, -1))
        )
        rows += [int(first[f]) + i for f in frames.tolist() for i in range(count)]
    place = torch.tensor(rows).argsort().to(device)
    features, anchor, size = (torch.cat(list(part), 1) for part in zip(*pieces, strict=True))
    return Reduction(features[:, place], assign.reshape(b, n), anchor[:, place], size[:, place])


def by_window(tokens: VisualTokens, keep: int, pick: Pick) -> Reduction:
    """Windows of whole frames, at most `CELLS` cells each: memory linear in the video's length."""
    t, h, w = tokens.grid
    count = min(t, -(-tokens.count // CELLS))
    edges = [t * i // count for i in range(count + 1)]
    parts: list[tuple[int, Reduction]] = []
    done = 0
    for start, stop in itertools.pairwise(edges):
        share = keep * stop // t - done
        done += share
        if share:
            part = reduce_part(tokens.frames(start, stop), share, pick)
            parts.append((start * h * w, part))
    return join(tokens, parts)


def join(tokens: VisualTokens, parts: list[tuple[int, Reduction]]) -> Reduction:
    """Reductions of runs of tokens, each with its first token, as one; the rest is dropped."""
    shape = tokens.features.shape[:2]
    assign = torch.full(shape, -1, dtype=torch.int64, device=tokens.features.device)
    done = 0
    for first, part in parts:
        moved = torch.where(part.assign < 0, part.assign, part.assign + done)
        assign[:, first : first + moved.shape[1]] = moved
        done += part.count
    return Reduction(
        torch.cat([part.features for _, part in parts], 1),
        assign,
        torch.cat([part.anchor + first for first, part in parts], 1),
        torch.cat([part.size for _, part in parts], 1),
    )
