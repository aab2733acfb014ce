"""From results to figures: accuracy, interval, share of dense, paired test, breakdowns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median
from typing import Any

from compress import get_method
from eval.arms import Arm
from eval.samples import Benchmark, Sample, Score, Scored, Unit
from eval.statistics import Interval, Paired, holm, interval, paired


@dataclass(frozen=True)
class Result:
    """The figures of one configuration.

    Attributes:
        title: the name of the configuration.
        accuracy: None if no answer is known (hidden test sets).
        share: accuracy as a share of that of dense.
        against: the paired test against dense.
        by: column -> value -> accuracy.
        extra: further figures of the benchmark.
        figures: means of measurements.
        errors: key -> reason of questions that were not answered. They count in no accuracy.
        unread: the number of answers from which nothing was read. They count as wrong.
        line: the name of the curve that this configuration is a point of.
        adjusted: the p of `against` after Holm, for the number of compared configurations.
        hard: accuracy on the questions that down-sampled images of the same budget get wrong and
            dense gets right (the filter of VTC-Bench, arXiv 2510.07143, section 4). None where no
            configuration down-samples at this budget.
    """

    title: str
    accuracy: Interval | None
    share: float | None = None
    against: Paired | None = None
    by: dict[str, dict[str, Interval]] = field(default_factory=dict)
    extra: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    unread: int = 0
    line: str = "dense"
    adjusted: float | None = None
    hard: Interval | None = None

    @property
    def flips(self) -> float | None:
        """The share of questions whose score differs from that of dense, up or down."""
        if self.against is None or self.accuracy is None:
            return None
        return (self.against.gained + self.against.lost) / self.accuracy.count


def score_all(
    benchmark: Benchmark, samples: Sequence[Sample], rows: Mapping[str, Mapping[str, Any]]
) -> list[Scored]:
    """Score the results of one configuration. A question without a result is an error."""
    scored = []
    for sample in samples:
        row = rows.get(sample.key, {"error": "no result"})
        if "error" in row:
            scored.append(Scored(sample, "", Score(None, None), row["error"]))
        else:
            scored.append(Scored(sample, row["text"], benchmark.score(sample, row["text"])))
    return scored


def summarise(
    benchmark: Benchmark,
    samples: Sequence[Sample],
    records: Mapping[Arm, Mapping[str, Mapping[str, Any]]],
    *,
    seed: int = 0,
) -> list[Result]:
    """The figures of every configuration. Dense comes first; the others are compared to it.

    records: configuration -> question key -> row, as from `read_records`.
    """
    arms = sorted(records, key=lambda arm: arm.method is not None)  # stable
    scored = {arm: score_all(benchmark, samples, records[arm]) for arm in arms}
    units = {arm: benchmark.units(scored[arm]) for arm in arms}
    dense = next((units[arm] for arm in arms if arm.method is None), None)
    coarse = {arm.budget: units[arm] for arm in arms if _downsamples(arm)}
    results = []
    for arm in arms:
        own = units[arm]
        against = share = None
        if dense and own and arm.method is not None:
            share, against = _compare(dense, own, seed)
        results.append(
            Result(
                arm.title,
                _interval(own, seed) if own else None,
                share,
                against,
                _by_group(own, seed),
                benchmark.extra(scored[arm]),
                _figures(records[arm]),
                {s.sample.key: s.error for s in scored[arm] if s.error},
                sum(s.score.read is None for s in scored[arm] if not s.error),
                arm.line,
                hard=_hard(dense, coarse.get(arm.budget), own, seed)
                if arm.method is not None and not _downsamples(arm)
                else None,
            )
        )
    _fill_dense(results)
    tested = [(i, r.against.p) for i, r in enumerate(results) if r.against is not None]
    for (i, _), p in zip(tested, holm([p for _, p in tested]), strict=True):
        results[i] = replace(results[i], adjusted=p)
    return results


def _fill_dense(results: Sequence[Result]) -> None:
    """Fill in the cost of dense, which the reports of the reduced configurations contain."""
    for name in ("", "macs", "cache"):
        source = f"dense_{name}" if name else "dense"
        known = [r.figures[source] for r in results if source in r.figures]
        for result in results:
            if result.line == "dense" and known:
                result.figures[name or "tokens"] = known[0]
                if not name and any("entering" in r.figures for r in results):
                    result.figures["entering"] = known[0]


def _compare(
    dense: Sequence[Unit], reduced: Sequence[Unit], seed: int
) -> tuple[float | None, Paired]:
    dense_values = {unit.key: unit.value for unit in dense}
    both = [unit for unit in reduced if unit.key in dense_values]
    a, b = [dense_values[u.key] for u in both], [u.value for u in both]
    share = fmean(b) / fmean(a) if any(a) else None
    return share, paired(a, b, [u.cluster for u in both], seed=seed)


def _downsamples(arm: Arm) -> bool:
    return arm.method is not None and get_method(arm.method).resizes_input


def _hard(
    dense: Sequence[Unit] | None, coarse: Sequence[Unit] | None, own: Sequence[Unit], seed: int
) -> Interval | None:
    """The accuracy of `own` on the units on which `coarse` is worse than `dense`."""
    if dense is None or coarse is None:
        return None
    values = {unit.key: unit.value for unit in coarse}
    hard = {unit.key for unit in dense if unit.value > values.get(unit.key, unit.value)}
    units = [unit for unit in own if unit.key in hard]
    return _interval(units, seed) if units else None


def _interval(units: Sequence[Unit], seed: int) -> Interval:
    return interval([u.value for u in units], [u.cluster for u in units], seed=seed)


def _by_group(units: Sequence[Unit], seed: int) -> dict[str, dict[str, Interval]]:
    sets: dict[str, dict[str, list[Unit]]] = defaultdict(lambda: defaultdict(list))
    for unit in units:
        for column, value in unit.groups.items():
            sets[column][value].append(unit)
    return {
        column: {value: _interval(values[value], seed) for value in sorted(values)}
        for column, values in sets.items()
    }


def _figures(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    measured: dict[str, list[float]] = defaultdict(list)
    for row in rows.values():
        for name, value in row.get("figures", {}).items():
            measured[name].append(float(value))
    # The median, as times have a long tail (the first batch, other work on the machine).
    timed = ("seconds",)
    return {n: median(v) if n in timed else fmean(v) for n, v in measured.items()}
