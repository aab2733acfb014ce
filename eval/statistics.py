"""Intervals and paired tests for accuracies; pure functions, float64, seeded.

A *cluster* is a set of questions that depend on one another (the questions on one video). Where
every question is its own cluster and is right or wrong, the interval is Wilson's and the test is
McNemar's exact one. Otherwise clusters, not questions, are resampled and have their signs flipped
(Miller, "Adding Error Bars to Evals", 2024, section 2.2).

Wilson's interval, the binomial test and the bootstrap are scipy's. Two functions are not: scipy has
no Holm adjustment, and `scipy.stats.permutation_test` doubles the smaller tail of the signed sum,
where the sign-flip test here counts the flips whose absolute sum is as large.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

DRAWS = 10_000
BATCH = 4_000_000  # draws times clusters that are held in memory at a time


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval. `count` questions in `clusters` clusters."""

    mean: float
    low: float
    high: float
    count: int
    clusters: int
    rule: str  # "wilson" or "bootstrap"


@dataclass(frozen=True)
class Paired:
    """The same questions under two configurations, other minus reference.

    `gained` and `lost` count the questions whose score rose and fell. `low` and `high` are the
    interval of the difference. `test` is "mcnemar" (exact) or "sign-flip" (by cluster).
    """

    difference: float
    low: float
    high: float
    p: float
    gained: int
    lost: int
    test: str


def wilson(successes: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a binomial proportion (Wilson 1927; no continuity correction).

    Raises ValueError unless 0 <= successes <= count, count >= 1 and 0 < level < 1.
    """
    if count < 1 or not 0 <= successes <= count:
        raise ValueError(
            f"successes={successes} of count={count}: expected 0 <= successes <= count"
        )
    _check_level(level)
    bounds = stats.binomtest(successes, count).proportion_ci(level, method="wilson")
    return float(bounds.low), float(bounds.high)


def interval(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
    draws: int = DRAWS,
) -> Interval:
    """The mean of `values` (scores in [0, 1]) and its interval.

    Wilson's interval if every cluster is one question that is right or wrong, else a percentile
    bootstrap over clusters. If all draws are equal (all right or all wrong), Wilson's interval with
    the number of clusters as count, because a width of zero would be wrong.

    Args:
        values: the score of each question.
        clusters: the label of each question's cluster (default: each question is its own).
        level: the confidence level.
        seed, draws: of the bootstrap.

    Raises ValueError for no values, values that are not finite, or lengths that differ.
    """
    x, index, groups = _checked(values, clusters)
    mean = float(x.mean())
    if groups == len(x) and _binary(x):
        low, high = wilson(int(x.sum()), len(x), level)
        return Interval(mean, low, high, len(x), groups, "wilson")
    low, high = _bootstrap(x, index, groups, draws, seed, level)
    if high - low < 1e-12 and _binary(x) and mean in (0.0, 1.0):
        low, high = wilson(round(mean * groups), groups, level)
        return Interval(mean, low, high, len(x), groups, "wilson")
    return Interval(mean, low, high, len(x), groups, "bootstrap")


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p of McNemar's exact test: the binomial test on the questions that changed.

    Raises ValueError for a negative count.
    """
    if gained < 0 or lost < 0:
        raise ValueError(f"gained={gained}, lost={lost}: expected counts of at least 0")
    changed = gained + lost
    return float(stats.binomtest(gained, changed).pvalue) if changed else 1.0


def paired(
    reference: Sequence[float],
    other: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
    draws: int = DRAWS,
) -> Paired:
    """Compare two configurations question by question. Arguments as of `interval`.

    Raises ValueError as `interval` does.
    """
    a, index, groups = _checked(reference, clusters)
    b, _, _ = _checked(other, clusters)
    if len(a) != len(b):
        raise ValueError(f"reference has {len(a)} values, other {len(b)}: expected the same count")
    delta = b - a
    gained, lost = int((delta > 0).sum()), int((delta < 0).sum())
    low, high = _bootstrap(delta, index, groups, draws, seed, level)
    if groups == len(a) and _binary(a) and _binary(b):
        p, test = mcnemar(gained, lost), "mcnemar"
    else:
        p, test = _sign_flip(delta, index, groups, draws, seed), "sign-flip"
    return Paired(float(delta.mean()), low, high, p, gained, lost, test)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjustment of p-values for their number (Holm 1979), in the given order."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    adjusted, top = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        top = max(top, min(1.0, ps[i] * (len(ps) - rank)))
        adjusted[i] = top
    return adjusted


def _checked(
    values: Sequence[float], clusters: Sequence[Hashable] | None
) -> tuple[np.ndarray, np.ndarray, int]:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0 or not np.isfinite(x).all():
        raise ValueError(f"values: expected at least one finite score, got shape {x.shape}")
    if clusters is None:
        return x, np.arange(len(x)), len(x)
    if len(clusters) != len(x):
        raise ValueError(f"{len(clusters)} cluster labels for {len(x)} values")
    # Numbered in order of appearance, so that draws do not depend on the labels.
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(label, len(numbers)) for label in clusters])
    return x, index, len(numbers)


def _binary(x: np.ndarray) -> bool:
    return bool(((x == 0) | (x == 1)).all())


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level={level}: expected a number between 0 and 1, such as 0.95")


def _bootstrap(
    x: np.ndarray, index: np.ndarray, groups: int, draws: int, seed: int, level: float
) -> tuple[float, float]:
    """Percentile interval of the mean of `x`, with clusters drawn with replacement."""
    _check_level(level)
    sums = np.bincount(index, weights=x, minlength=groups)
    sizes = np.bincount(index, minlength=groups).astype(np.float64)
    if groups == 1:  # scipy refuses one observation; every draw is the mean
        return float(sums[0] / sizes[0]), float(sums[0] / sizes[0])
    bootstrap = stats.bootstrap(
        (sums, sizes),
        lambda sums, sizes, axis: sums.sum(axis) / sizes.sum(axis),
        n_resamples=draws,
        batch=max(1, BATCH // groups),
        vectorized=True,
        paired=True,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = bootstrap.confidence_interval
    return float(low), float(high)


def _sign_flip(delta: np.ndarray, index: np.ndarray, groups: int, draws: int, seed: int) -> float:
    """Two-sided p of the hypothesis that clusters' differences are symmetric about zero."""
    sums = np.bincount(index, weights=delta, minlength=groups)
    sums = sums[sums != 0]
    if len(sums) == 0:
        return 1.0
    observed = abs(sums.sum()) - 1e-9
    if len(sums) <= 12:  # few enough for an exact test
        flips = np.array(list(itertools.product((1, -1), repeat=len(sums))))
        return float((np.abs(flips @ sums) >= observed).mean())
    rng = np.random.default_rng(seed)
    hits = 0
    step = max(1, BATCH // len(sums))
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        flips = 1 - 2 * rng.integers(0, 2, (rows, len(sums)))
        hits += int((np.abs(flips @ sums) >= observed).sum())
    return (hits + 1) / (draws + 1)
