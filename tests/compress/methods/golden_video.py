"""References in the manner of golden.py for methods that deal tokens to the frames of a video."""

from __future__ import annotations

import numpy as np

from tests.compress.methods.golden import argmax, best_first, cos, dropped, minmax, softmax


def deal(quota, scores, keep, every):
    """Cells by frame quota: `scores` (T, n); see ops.by_quota."""
    n = len(scores[0])
    want = {}
    for t, row in enumerate(scores):
        for place, i in enumerate(best_first(row)):
            sure = every and keep >= len(scores) and place == 0
            want[t * n + i] = np.inf if sure else quota[t] - place
    return sorted(want, key=lambda c: (-want[c], c))[:keep]


def vcast(x, grid, keep, temperature=0.7, released=False):
    t = grid[0]
    frames = x.reshape(t, -1, x.shape[1])

    def unit(v):
        return v / np.linalg.norm(v)

    centre = [unit(f.mean(0)) for f in frames]
    bend = [1.0] * t
    for i in range(1, t - 1):
        bend[i] = 1 - cos(centre[i] - centre[i - 1], centre[i + 1] - centre[i])
    share = softmax(np.array(bend) / temperature)
    sure = 1 if keep >= t else 0
    scores = [
        [1 - cos(v, c) for v in f] + minmax(np.linalg.norm(f, axis=1))
        for f, c in zip(frames, centre, strict=True)
    ]
    quota = sure + share * (keep - sure * t)
    if released:  # one token after another to the frame of largest remainder, until it is full
        n = frames.shape[1]
        counts = np.minimum(np.floor(quota), n)
        remainder = quota - np.floor(quota)
        while counts.sum() < keep:
            counts[argmax([-1 if c == n else r for c, r in zip(counts, remainder)])] += 1  # noqa: B905
        quota = counts
    return dropped(x, deal(quota, scores, keep, True))


def vidcom2(x, grid, keep, temperature=0.01):
    quiet = best_first(-x.var(0))[: x.shape[1] // 2]
    y = np.array([v[quiet] / np.linalg.norm(v[quiet]) for v in x])
    frames = y.reshape(grid[0], -1, len(quiet))

    def like(v, c):
        return sum(np.exp(-np.sum((v - c) ** 2) / (2 * 2.0**k)) for k in range(-3, 2))

    video = [[like(v, y.mean(0)) for v in f] for f in frames]
    own = [[like(v, f.mean(0)) for v in f] for f in frames]
    rare = softmax(np.array([-np.mean(g) for g in video]) / temperature)
    quota = keep / grid[0] * (1 + rare - rare.mean())
    return dropped(x, deal(quota, -(np.array(video) + np.array(own)), keep, False))
