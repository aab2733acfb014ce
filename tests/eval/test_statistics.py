"""Intervals and tests against published and independently computed figures."""

from __future__ import annotations

import numpy as np
import pytest

from eval.statistics import holm, interval, mcnemar, paired, wilson


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17, table I, method 3 (score, no correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_is_newcombes_table(successes: int, count: int, low: float, high: float) -> None:
    assert wilson(successes, count) == pytest.approx((low, high), abs=5e-5)


def test_wilson_stays_in_the_unit_interval_and_refuses_nonsense() -> None:
    assert wilson(0, 3)[0] == 0.0
    assert wilson(3, 3)[1] == 1.0
    for successes, count, level in [(4, 3, 0.95), (-1, 3, 0.95), (0, 0, 0.95), (1, 2, 1.0)]:
        with pytest.raises(ValueError):
            wilson(successes, count, level)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (0, 5, 2 / 2**5),
        (3, 12, 2 * (1 + 15 + 105 + 455) / 2**15),
        (1, 7, 2 * 9 / 2**8),
    ],
)
def test_mcnemar_is_the_exact_binomial_test(gained: int, lost: int, p: float) -> None:
    assert mcnemar(gained, lost) == p
    assert mcnemar(lost, gained) == p


def test_mcnemar_keeps_its_precision_for_large_counts() -> None:
    # 4000 changes: a float sum of the binomial terms would have overflowed.
    # scipy.stats.binomtest(1900, 4000).pvalue
    assert mcnemar(1900, 2100) == pytest.approx(0.0016492663751, rel=1e-9)


def test_one_question_a_cluster_gives_wilson() -> None:
    actual = interval([1, 0, 1, 1], ["a", "b", "c", "d"])
    assert actual.rule == "wilson"
    assert (actual.low, actual.high) == wilson(3, 4)
    assert (actual.mean, actual.count, actual.clusters) == (0.75, 4, 4)


def test_clusters_widen_the_interval() -> None:
    # Three copies of each question know no more than one of each.
    rng = np.random.default_rng(0)
    once = (rng.random(60) < 0.6).astype(float)
    thrice, labels = np.repeat(once, 3), np.repeat(np.arange(60), 3)
    alone, clustered = interval(list(thrice)), interval(list(thrice), list(labels))
    assert clustered.rule == "bootstrap"
    width = clustered.high - clustered.low
    assert width == pytest.approx(np.sqrt(3) * (alone.high - alone.low), rel=0.1)
    # The bootstrap's standard error of a mean is sd / sqrt(clusters).
    assert width == pytest.approx(2 * 1.96 * once.std() / np.sqrt(60), rel=0.06)


def test_unequal_clusters_are_averaged_over_questions() -> None:
    assert interval([1, 1, 1, 0], ["a", "a", "a", "b"]).mean == 0.75


def test_a_draw_of_clusters_is_averaged_over_questions_too() -> None:
    # Of two clusters, nine right and one wrong, half the draws take one of each: 9 of 10 right.
    actual = interval([1.0] * 9 + [0.0], ["a"] * 9 + ["b"], level=0.4)
    assert (actual.low, actual.high) == pytest.approx((0.9, 0.9))


def test_soft_scores_are_bootstrapped_and_seeded() -> None:
    values = list(np.random.default_rng(0).random(30))
    assert interval(values).rule == "bootstrap"
    assert interval(values, seed=1) == interval(values, seed=1)
    assert interval(values, seed=1) != interval(values, seed=2)


def test_all_right_in_clusters_has_not_zero_width() -> None:
    actual = interval([1.0] * 6, ["a", "a", "a", "b", "b", "b"])
    assert actual.rule == "wilson"
    assert (actual.low, actual.high) == wilson(2, 2)


def test_paired_counts_what_changed() -> None:
    dense, other = [1, 1, 1, 0, 1, 0], [1, 0, 0, 1, 0, 0]
    actual = paired(dense, other)
    assert (actual.gained, actual.lost, actual.test) == (1, 3, "mcnemar")
    assert actual.p == mcnemar(1, 3)
    assert actual.difference == pytest.approx(-2 / 6)
    assert actual.low <= actual.difference <= actual.high


def test_paired_flips_the_signs_of_clusters() -> None:
    # Clusters' sums -2, -2, -2: of 8 ways to flip them, 2 are as far from zero.
    actual = paired([1] * 6, [0] * 6, ["a", "a", "b", "b", "c", "c"])
    assert (actual.test, actual.p) == ("sign-flip", 0.25)
    assert paired([1, 1, 0], [1, 1, 0], ["a", "a", "b"]).p == 1.0


def test_sign_flip_by_draws_agrees_with_mcnemar_where_both_hold() -> None:
    dense = [1.0] * 40 + [0.0] * 40
    other = [1.0] * 28 + [0.0] * 12 + [1.0] * 3 + [0.0] * 37
    exact = paired(dense, other)
    # A soft score that changes nothing sends the same data the other way.
    drawn = paired([*dense, 0.5], [*other, 0.5])
    assert (exact.test, drawn.test) == ("mcnemar", "sign-flip")
    assert drawn.p == pytest.approx(exact.p, abs=0.01)


def test_holm_is_monotone_and_capped() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize("values", [[], [float("nan")], [[1.0]]])
def test_values_that_are_no_scores_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite score"):
        interval(values)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="labels"):
        interval([1.0, 0.0], ["a"])
    with pytest.raises(ValueError, match="same count"):
        paired([1.0], [1.0, 0.0])
