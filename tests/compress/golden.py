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
            every = [a, *rest]
            out.append(sum(size[i] * x[i] for i in every) / sum(size[i] for i in every))
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
