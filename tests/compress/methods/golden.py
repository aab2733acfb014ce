"""Slow, obvious references in numpy float64, one input at a time, written from the formulas.

Every function works on one sample: features x (N, D), keys (N, Dk), saliency s (N,). A reduction
is (rows, features): rows is a list of (anchor, sorted members with the anchor), in output order.
"""

from __future__ import annotations

import numpy as np


def best_first(scores):
    """Indices by score descending, index ascending."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))


def cos(a, b):
    na, nb = np.sqrt(np.sum(a * a)), np.sqrt(np.sum(b * b))
    return 0.0 if na == 0 or nb == 0 else float(np.sum(a * b) / (na * nb))


def argmax(values):
    """First index of the largest value."""
    return best_first(values)[0]


def dropped(x, kept, raster=True):
    kept = sorted(kept) if raster else list(kept)
    return [(i, [i]) for i in kept], x[kept]


def merged(x, groups, rule="mean", raster=True, size=None):
    """groups: {anchor: members without the anchor}, in rank order."""
    size = np.ones(len(x)) if size is None else np.asarray(size, dtype=np.float64)
    anchors = sorted(groups) if raster else list(groups)
    rows, out = [], []
    for a in anchors:
        rest = [i for i in groups[a] if i != a]
        if not rest:
            out.append(x[a])
        elif rule == "add":
            out.append(x[a] + sum(size[i] * x[i] for i in rest) / sum(size[i] for i in rest))
        else:
            members = [a, *rest]
            out.append(sum(size[i] * x[i] for i in members) / sum(size[i] for i in members))
        rows.append((a, sorted([a, *rest])))
    return rows, np.array(out)


def duet(x, keys, s, dominant, contextual, width=4, cluster="pool", released=False, attn=None):
    ranked = best_first(s)
    groups = {a: [] for a in sorted(ranked[:dominant])}
    rest = ranked[dominant:]
    if cluster == "attention":
        centres = rest[:contextual]
        free = rest[contextual:]
        chosen_by = {i: [] for i in free}
        for c in centres:
            wanted = sorted(free, key=lambda i: (-attn[c][i], i))[: width - 1]
            for i in wanted:
                chosen_by[i].append(c)
        groups |= {c: [] for c in centres}
        for i, who in chosen_by.items():
            if who:
                best = sorted(who, key=lambda c: (-attn[c][i], centres.index(c)))[0]
                groups[best].append(i)
    else:
        pool = (
            sorted(rest) if cluster == "visionzip" else rest[: min(width * contextual, len(rest))]
        )
        step = max(1, len(pool) // contextual)
        anchors = pool[::step][:contextual]
        groups |= {a: [] for a in anchors}
        for i in pool:
            if i not in anchors:
                groups[anchors[argmax([cos(keys[i], keys[a]) for a in anchors])]].append(i)
    return merged(x, groups, "add" if released else "mean", raster=not released)


def nearest_rows(vectors, centres, members):
    """{centre: members of most similar vector}, ties to the earlier centre."""
    groups = {c: [] for c in centres}
    for i in members:
        if i not in groups:
            groups[centres[argmax([cos(vectors[i], vectors[c]) for c in centres])]].append(i)
    return groups


def visionzip(x, keys, s, keep, released=False):
    contextual = round(keep * 10 / 64)
    if contextual == 0:
        return dropped(x, best_first(s)[:keep])
    return duet(x, keys, s, keep - contextual, contextual, cluster="visionzip", released=released)


def divprune(x, keep):
    n = len(x)
    far = np.array([[1 - cos(x[i], x[j]) for j in range(n)] for i in range(n)])
    picked = [argmax([min(far[i][j] for j in range(n) if j != i) for i in range(n)])]
    while len(picked) < keep:
        picked.append(
            argmax([-1 if i in picked else min(far[i][p] for p in picked) for i in range(n)])
        )
    return dropped(x, picked)


def scope(x, s, keep, power=1.0):
    n, picked, covered = len(x), [], np.zeros(len(x))
    while len(picked) < keep:
        gains = [
            -1.0 if i in picked
            else s[i] ** power * sum(max(0.0, cos(x[i], x[j]) - covered[j]) for j in range(n))
            for i in range(n)
        ]  # fmt: skip
        picked.append(argmax(gains))
        covered = np.array([max(covered[j], cos(x[picked[-1]], x[j])) for j in range(n)])
    return dropped(x, picked)


def mmr(x, s, keep, balance=0.5):
    s, n = minmax(s), len(x)
    picked = [argmax(s)]
    while len(picked) < keep:
        worth = [
            -np.inf if i in picked
            else balance * s[i] - (1 - balance) * max(cos(x[i], x[p]) for p in picked)
            for i in range(n)
        ]  # fmt: skip
        picked.append(argmax(worth))
    return dropped(x, picked)


def idselection(x, s, keep, decay=20.0):
    s, n, picked = minmax(s), len(x), []
    while len(picked) < keep:
        best = argmax([-np.inf if i in picked else s[i] for i in range(n)])
        picked.append(best)
        taken = max(0.0, s[best])
        s = np.array([s[j] - np.exp(-decay * (1 - cos(x[best], x[j])) ** 2) * taken
                      for j in range(n)])  # fmt: skip
    return dropped(x, picked)


def prunesid(x, s, keep, spread=32.0):
    n, count = len(x), max(1, keep // 4)
    observed = 1 / (1 + np.exp(-x.T))  # channels are observations of tokens
    _, _, right = np.linalg.svd(observed - observed.mean(0), full_matrices=True)
    group = np.abs(right[:count].T).argmax(1)
    pairs = [cos(x[i], x[j]) for i in range(n) for j in range(i + 1, n)]
    limit = keep / spread * np.mean(pairs)
    stay, rest = {g: [] for g in range(count)}, {g: [] for g in range(count)}
    for i in best_first(s):
        over = any(cos(x[i], x[j]) > limit for j in stay[group[i]])
        (rest if over else stay)[group[i]].append(i)
    size = [len(stay[g]) + len(rest[g]) for g in range(count)]
    most = [min(5 * -(-keep // 64), size[g], len(stay[g])) for g in range(count)]
    while sum(most) < keep:
        most = [min(m + 1, total) for m, total in zip(most, size, strict=True)]
    least = [min(1, total) for total in size]
    over, edges = keep - sum(least), np.cumsum([len(stay[g]) for g in range(count)])
    dealt = np.diff(np.round(edges / edges[-1] * over), prepend=0).astype(int)
    quota = [min(a + b, c) for a, b, c in zip(least, dealt, most, strict=True)]
    for g in sorted(range(count), key=lambda g: (-len(stay[g]), g)):
        quota[g] += min(most[g] - quota[g], keep - sum(quota))
    return dropped(x, [i for g in range(count) for i in [*stay[g], *rest[g]][: quota[g]]])


def determinantal(x, quality, keep):
    """Greedy determinant: each pick maximises det of the kernel on the picks."""
    n = len(x)
    kernel = np.array(
        [[quality[i] * quality[j] * cos(x[i], x[j]) for j in range(n)] for i in range(n)]
    )
    picked = []
    while len(picked) < keep:
        dets = []
        for i in range(n):
            own = [*picked, i]
            dets.append(-1.0 if i in picked else np.linalg.det(kernel[np.ix_(own, own)]))
        picked.append(argmax(dets))
    return picked


def relevance(x, query):
    return np.array([np.mean([cos(v, q) for q in query]) for v in x])


def minmax(values):
    return (values - values.min()) / (values.max() - values.min())


def cdpruner(x, query, keep, negate=False):
    score = relevance(x, query)
    return dropped(x, determinantal(x, minmax(-score if negate else score) + 1e-6, keep))


def softmax(v):
    e = np.exp(v - np.max(v))
    return e / e.sum()


def mmtok(x, vision, query, keep, temperature=0.02, weight=0.5):
    n = len(x)
    needs = [softmax(np.array([cos(q, v) for v in x]) / temperature) / len(query) for q in query]
    needs += [weight * softmax(np.array([cos(c, v) for v in vision]) / 0.2) / n for c in vision]
    picked = []
    while len(picked) < keep:
        gains = [
            -1.0 if j in picked else sum(max(need[i] for i in [*picked, j]) for need in needs)
            for j in range(n)
        ]
        picked.append(argmax(gains))
    return dropped(x, picked)


def vispruner(x, s, keep, step):
    ranked = best_first(s)
    salient = keep // 2
    rest = ranked[salient:]
    while len(rest) > keep - salient:
        even, odd = rest[::2], rest[1::2]
        gone = min(step, len(rest) - (keep - salient), len(even))
        similar = [max(cos(x[e], x[o]) for o in odd) for e in even]
        rest = [even[i] for i in best_first(similar)[gone:]] + odd
    return dropped(x, ranked[:salient] + rest)


def prumerge(x, keys, s, keep, released=False, neighbours=5):
    n = len(x)
    plain = keep - 1 if released else keep
    count = max(1, round(plain * 0.25))
    ranked = best_first(s)
    rest = sorted(ranked[count:])
    spaced = plain - count
    kept = sorted(ranked[:count] + [rest[(2 * i + 1) * len(rest) // (2 * spaced)]
                                    for i in range(spaced)])  # fmt: skip
    if not released:
        return merged(x, nearest_rows(keys, kept, range(n)))
    out = []
    for i in kept:
        near = sorted((j for j in range(n) if j != i), key=lambda j: (-cos(keys[i], keys[j]), j))
        out.append(x[i] + sum(s[j] * x[j] for j in near[:neighbours]))
    left = [i for i in range(n) if i not in kept]
    out.append(sum(s[j] * x[j] for j in left))
    rows = [(i, [i]) for i in kept] + [(left[argmax([s[j] for j in left])], left)]
    return rows, np.array(out)


def tome(x, keys, keep):
    groups = [[i] for i in range(len(x))]
    anchors, values, key = list(range(len(x))), [*x], [*keys]
    while len(groups) > keep:
        gone = min(len(groups) - keep, len(groups) // 2)
        even, odd = list(range(0, len(groups), 2)), list(range(1, len(groups), 2))
        link = {i: odd[argmax([cos(key[i], key[j]) for j in odd])] for i in even}
        order = sorted(even, key=lambda i: (-cos(key[i], key[link[i]]), i))[:gone]
        new_values, new_key, new_groups = [*values], [*key], [list(g) for g in groups]
        for j in odd:
            members = [j, *(i for i in order if link[i] == j)]
            total = sum(len(groups[i]) for i in members)
            new_values[j] = sum(len(groups[i]) * values[i] for i in members) / total
            new_key[j] = sum(len(groups[i]) * key[i] for i in members) / total
            new_groups[j] = [c for i in members for c in groups[i]]
        stay = [i for i in range(len(groups)) if i not in order]
        values, key = [new_values[i] for i in stay], [new_key[i] for i in stay]
        groups, anchors = [new_groups[i] for i in stay], [anchors[i] for i in stay]
    rows = [(anchor, sorted(group)) for anchor, group in zip(anchors, groups, strict=True)]
    return rows, np.array(values)


def vscan(x, s, shallow, grid, keep, window):
    _, h, w = grid
    local = keep // 2
    nth = {}
    for i in best_first(shallow):
        box = (i // w // window, i % w // window)
        nth[i] = sum(1 for j in nth if (j // w // window, j % w // window) == box)
    near = sorted(range(h * w), key=lambda i: (nth[i], -shallow[i], i))[:local]
    rest = [i for i in best_first(s) if i not in near]
    kept = near + rest[: keep - local]
    return merged(x, nearest_rows(x, kept, range(len(x))))


def dart(hidden, keys, text, text_keys, count):
    n = len(hidden)
    pivots = best_first(np.abs(keys).sum(1))[: min(4, count)]
    vectors = [hidden[p] for p in pivots]
    vectors += [text[i] for i in best_first(np.abs(text_keys).sum(1))[:4]]
    left = count - len(pivots)
    kept = list(pivots)
    for i, v in enumerate(vectors):
        share = left // len(vectors) + (i < left % len(vectors))
        free = [j for j in range(n) if j not in kept]
        kept += sorted(free, key=lambda j: (cos(v, hidden[j]), j))[:share]
    return dropped(hidden, kept)


def holov(x, s, keep, chunks, diversity=0.09):
    width = -(-len(x) // chunks)
    parts = [list(range(a, min(a + width, len(x)))) for a in range(0, len(x), width)]
    spread = np.zeros(len(x))
    for part in parts:
        for i in part:
            spread[i] = np.var([cos(x[i], x[j]) for j in part])
    spread = minmax(spread)
    content = np.array([np.mean([1000 * s[i] + diversity * spread[i] for i in p]) for p in parts])
    quota = keep * content / content.sum()
    wanted = np.zeros(len(x))
    for share, part in zip(quota, parts, strict=True):
        for place, k in enumerate(best_first(s[part])):
            wanted[part[k]] = share - place
    return dropped(x, best_first(wanted)[:keep])


def foveate(
    x, s, query, grid, keep, choice="cover", merge=True, purity=0.5, salient=2.0, place=4.0
):
    n = len(x)
    text = sum(softmax(np.array([cos(q, v) for v in x]) / 0.02) for q in query)
    distinct = np.sum((x - x.mean(0)) ** 2, 1)
    parts = [(1, np.ones(n)), (salient, s), (1, distinct), (1, text)]
    weight = sum(w * p / p.sum() for w, p in parts) / (3 + salient)
    apart = np.array([[np.sum((a - b) ** 2) for b in x] for a in x])
    w = grid[2]
    reach = (n / keep) ** 0.5
    near = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            steps = (i // w - j // w) ** 2 + (i % w - j % w) ** 2
            far = steps / (2 * (place * reach) ** 2)
            near[i, j] = np.exp(-apart[i, j] / (2 * 0.35**2 * apart.mean()) - far)
    picked = []
    while len(picked) < keep:
        gains = []
        for j in range(n):
            own = [*picked, j]
            if j in picked:
                gains.append(-1.0)
            elif choice == "cover":
                gains.append(sum(weight[i] * max(near[i, k] for k in own) for i in range(n)))
            elif choice == "volume":
                kernel = near * weight[:, None] * weight[None] * n * n
                gains.append(np.linalg.det(kernel[np.ix_(own, own)]))
            else:
                gains.append(weight[j])
        picked.append(argmax(gains))
    if not merge:
        return dropped(x, picked)
    groups = {p: [] for p in picked}
    for i in range(n):
        best = picked[argmax([near[i, p] for p in picked])]
        if i not in groups and near[i, best] >= purity:
            groups[best].append(i)
    return merged(x, groups)
