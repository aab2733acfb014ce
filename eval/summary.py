"""From records to figures: accuracy, interval, share of dense, paired test, breakdowns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median
from typing import Any

from eval.arms import Arm
from eval.samples import Benchmark, Sample, Score, Scored, Unit
from eval.statistics import Interval, Paired, holm, interval, paired


@dataclass(frozen=True)
class Result:
    """One configuration's figures. `accuracy` is None where no answer is known (hidden tests).

    share, against: of dense, and the paired test against it; adjusted: its p after Holm, for the
    number of configurations that are compared. by: column -> value -> interval.
    extra: the benchmark's further figures. figures: means of what was measured. errors: questions
    that were not answered, with the reason; they are in no accuracy. unread: answers that the rules
    could make nothing of; they count as wrong. line: what the points of one curve share.
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


def score_all(
    benchmark: Benchmark, samples: Sequence[Sample], rows: Mapping[str, Mapping[str, Any]]
) -> list[Scored]:
    """Score the records of one configuration; a question without a record is an error."""
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
    """Figures of every configuration, dense (if it is there) first and the measure of the others.

    records: configuration -> question key -> row, as `read_records` gives them.
    """
    arms = sorted(records, key=lambda arm: arm.method is not None)  # stable
    scored = {arm: score_all(benchmark, samples, records[arm]) for arm in arms}
    units = {arm: benchmark.units(scored[arm]) for arm in arms}
    dense = next((units[arm] for arm in arms if arm.method is None), None)
    results = []
    for arm in arms:
        mine = units[arm]
        against = share = None
        if dense and mine and arm.method is not None:
            share, against = _compare(dense, mine, seed)
        results.append(
            Result(
                arm.title,
                _interval(mine, seed) if mine else None,
                share,
                against,
                _by_group(mine, seed),
                benchmark.extra(scored[arm]),
                _figures(records[arm]),
                {s.sample.key: s.error for s in scored[arm] if s.error},
                sum(s.score.read is None for s in scored[arm] if not s.error),
                arm.line,
            )
        )
    _fill_dense(results)
    tested = [(i, r.against.p) for i, r in enumerate(results) if r.against is not None]
    for (i, _), p in zip(tested, holm([p for _, p in tested]), strict=True):
        results[i] = replace(results[i], adjusted=p)
    return results


def _fill_dense(results: Sequence[Result]) -> None:
    """What the reports of the others say that dense costs."""
    for name in ("", "macs", "cache"):
        source = f"dense_{name}" if name else "dense"
        known = [r.figures[source] for r in results if source in r.figures]
        for result in results:
            if result.line == "dense" and known:
                result.figures[name or "tokens"] = known[0]


def _compare(dense: Sequence[Unit], mine: Sequence[Unit], seed: int) -> tuple[float | None, Paired]:
    theirs = {unit.key: unit.value for unit in dense}
    both = [unit for unit in mine if unit.key in theirs]
    a, b = [theirs[u.key] for u in both], [u.value for u in both]
    share = fmean(b) / fmean(a) if any(a) else None
    return share, paired(a, b, [u.cluster for u in both], seed=seed)


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
    seen: dict[str, list[float]] = defaultdict(list)
    for row in rows.values():
        for name, value in row.get("figures", {}).items():
            seen[name].append(float(value))
    # Times have a long tail (the first batch, other work on the machine); counts are exact.
    timed = ("seconds",)
    return {n: median(v) if n in timed else fmean(v) for n, v in seen.items()}
