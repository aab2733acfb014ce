"""Slow, obvious references of the clustering methods; see golden.py."""

from __future__ import annotations

import numpy as np

from tests.compress.methods.golden import argmax, best_first, cos, merged
from tests.compress.methods.golden_video import deal


def peaks(x, k):
    """DPC-KNN: log(density * delta) of each token."""
    n, d = x.shape
    far = np.array([[np.linalg.norm(x[i] - x[j]) / np.sqrt(d) for j in range(n)] for i in range(n)])
    thin = [np.mean(np.sort(far[i])[: min(k, n)] ** 2) for i in range(n)]
    score = []
    for i in range(n):
        denser = [far[i][j] for j in range(n) if (thin[j], j) < (thin[i], i)]
        score.append(np.log(min(denser) if denser else far.max()) - thin[i])
    return np.array(score)


def dpc(x, keep, k):
    """{centre: members}, centres by score."""
    if k > keep:
        k = min(3, max(keep // 2, 1))
    centres = best_first(peaks(x, k))[:keep]
    groups = {c: [] for c in centres}
    for i in range(len(x)):
        if i not in groups:
            groups[centres[argmax([-np.linalg.norm(x[i] - x[c]) for c in centres])]].append(i)
    return groups


def cascade(x, keep, k=5, size=None):
    return merged(x, dpc(x, keep, k), size=size)


def recluster(rows, features, keep, k):
    """A reduction clustered again: rows, features."""
    size = [len(members) for _, members in rows]
    again, out = merged(features, dpc(features, keep, k), size=size) if keep < len(rows) else (
        [(i, [i]) for i in range(len(rows))], features)  # fmt: skip
    return [(rows[a][0], sorted(c for i in m for c in rows[i][1])) for a, m in again], out


def scales(keep):
    coarse, middle = keep // 7, 2 * keep // 7
    return [c for c in (keep - middle - coarse, middle, coarse) if c]


def chatunivi_levels(x, counts):
    rows, out = [(i, [i]) for i in range(len(x))], x
    levels = []
    for scale, count in enumerate(counts):
        rows, out = recluster(rows, out, count, 3 if scale else 5)
        levels.append((rows, out))
    return levels


def chatunivi(x, keep):
    levels = chatunivi_levels(x, scales(keep))
    return [r for rows, _ in levels for r in rows], np.concatenate([out for _, out in levels])


def chatunivi_video(x, t, events, each):
    """`events` clusters of frames, `each` rows an event."""
    frames = x.reshape(t, -1, x.shape[1])
    n = frames.shape[1]
    groups = dpc(frames.mean(1), events, 5)
    kinds = sorted(sorted([c, *m]) for c, m in groups.items())
    levels = [chatunivi_levels(f, scales(each)) for f in frames]
    rows, out = [], []
    for event in kinds:
        for scale, count in enumerate(scales(each)):
            all_rows = [(a + f * n, [c + f * n for c in m])
                        for f in event for a, m in levels[f][scale][0]]  # fmt: skip
            values = np.concatenate([levels[f][scale][1] for f in event])
            new_rows, new = recluster(all_rows, values, count, 3 if scale else 5)
            rows += new_rows
            out.append(new)
    return rows, np.concatenate(out)


def fastvid(x, s, grid, keep, cuts, threshold, every, released=False):
    t = grid[0]
    frames = x.reshape(t, -1, x.shape[1])
    n = frames.shape[1]
    near = [cos(frames[i].mean(0), frames[i + 1].mean(0)) for i in range(t - 1)]
    cut = set(best_first(-np.array(near))[:cuts]) | {i for i, v in enumerate(near) if v < threshold}
    segment = [sum(1 for c in cut if c < i) for i in range(t)]
    count = int(keep * 0.6)
    salient = deal([count / t] * t, s.reshape(t, n), count, False)
    quota, scores = [], []
    for i in range(t):
        mates = [j for j in range(t) if segment[j] == segment[i]]
        holding = [j for j in mates if (mates[-1] - j) % every == 0]
        quota.append((keep - count) * len(mates) / t / len(holding) if i in holding else -1e9)
        if released:  # the salient tokens are taken out first
            rest = [c for c in range(n) if i * n + c not in salient]
            score = np.full(n, -np.inf)
            score[rest] = peaks(frames[i][rest], 4)
        else:
            score = peaks(frames[i], 4)
        scores.append([-np.inf if i * n + c in salient else score[c] for c in range(n)])
    want = {}
    for i in range(t):
        for place, c in enumerate(best_first(scores[i])):
            want[i * n + c] = -np.inf if i * n + c in salient else quota[i] - place
    anchors = sorted(want, key=lambda c: (-want[c], c))[: keep - count]
    groups = {a: [] for a in [*anchors, *salient]}
    for i in range(len(x)):
        mates = [a for a in anchors if segment[a // n] == segment[i // n]]
        if i not in groups and mates:
            groups[mates[argmax([cos(x[i], x[a]) for a in mates])]].append(i)
    rows, out = merged(x, groups)
    if released:
        members = {a: [] for a in anchors}
        for f in {a // n for a in anchors}:  # each anchor frame merges its whole segment
            own = [a for a in anchors if a // n == f]
            for i in range(len(x)):
                if segment[i // n] == segment[f] and i not in salient:
                    members[own[argmax([cos(x[i], x[a]) for a in own])]].append(i)
        out = []
        for a, _ in rows:
            if a in salient:
                out.append(x[a])
            else:
                weight = max(1 / (len(members[a]) + 1), 0.6)
                out.append(weight * x[a] + (1 - weight) * x[members[a]].mean(0))
    return rows, np.array(out)


def sparsevlm(hidden, scores, size, count):
    n = len(hidden)

    def made(rest):
        return (int(0.3 * rest) + 1) // 10 + 1 if rest else 0

    kept = max(k for k in range(count + 1) if k + made(n - k) <= count)
    ranked = best_first(scores)
    pool = ranked[kept : kept + int(0.3 * (n - kept)) + 1]
    clusters = dpc(hidden[pool], count - kept, count - kept)
    groups = {i: [] for i in ranked[:kept]}
    groups |= {pool[c]: [pool[i] for i in m] for c, m in clusters.items()}
    return merged(hidden, groups, size=size)


def flashvid(x, s, grid, keep, segments, threshold, link, k=7):
    t = grid[0]
    n = len(x) // t
    count = round(keep * 0.7)
    each = [count * (f + 1) // t - count * f // t for f in range(t)]
    chosen = []
    for f, quota in enumerate(each):
        frame = range(f * n, f * n + n)
        first = argmax([s[i] * min(1 - cos(x[i], x[j]) for j in frame if j != i) for i in frame])
        picked = [f * n + first]
        while len(picked) < max(1, quota):
            picked.append(
                f * n
                + argmax(
                    [
                        -1 if i in picked else s[i] * min(1 - cos(x[i], x[p]) for p in picked)
                        for i in frame
                    ]
                )
            )
        chosen += picked[:quota]
    means = [x[f * n : f * n + n].mean(0) for f in range(t)]
    near = [cos(means[f], means[f + 1]) for f in range(t - 1)]
    cuts = {f for f, v in enumerate(near) if v < threshold}
    cuts |= set(best_first(-np.array(near))[: min(segments, t) - 1])
    links = {}
    for i in range(n, len(x)):
        before = [j for j in range(len(x)) if j // n == i // n - 1 and j not in chosen]
        if i in chosen or i // n - 1 in cuts or not before:
            continue
        best = before[argmax([cos(x[i], x[j]) for j in before])]
        if cos(x[i], x[best]) > link:
            links[i] = (cos(x[i], x[best]), best)
    allowed = sorted(links, key=lambda i: (-links[i][0], i))
    allowed = allowed[: len(x) - len(chosen) - (keep - len(chosen))]
    trees = {i: [i] for i in range(len(x)) if i not in chosen and i not in allowed}
    for i in range(len(x)):
        if i in allowed:
            root = i
            while root in allowed:
                root = links[root][1]
            trees[root].append(i)
    mean = {root: x[members].mean(0) for root, members in trees.items()}
    scores = np.full((t, n), -np.inf)
    for f in range(t):
        roots = [i for i in trees if i // n == f]
        values = peaks(np.array([mean[i] for i in roots]), k) if len(roots) > 1 else [-1e30]
        for i, value in zip(roots, values, strict=False):
            scores[f, i % n] = value
    rest = keep - len(chosen)
    want = {}
    for f in range(t):
        for place, c in enumerate(best_first(scores[f])):
            sure = rest >= t and place == 0
            wanted = np.inf if sure else rest * (f + 1) // t - rest * f // t - place
            want[f * n + c] = wanted if f * n + c in trees else -np.inf
    centres = sorted(want, key=lambda c: (-want[c], c))[:rest]
    groups = {c: [] for c in [*centres, *chosen]}
    for root, members in trees.items():
        own = [c for c in centres if c // n == root // n]
        if own:
            home = own[argmax([-np.square(mean[root] - mean[c]).sum() for c in own])]
            groups[home] += [i for i in members if i != home]
    return merged(x, groups)
