"""Reports of a run: a table as text, `report.html`, plots, and all figures as JSON."""

from __future__ import annotations

import base64
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from eval.arms import Arm
from eval.records import read_records, replace
from eval.samples import Benchmark, Problem, Sample
from eval.statistics import Interval
from eval.summary import Result, score_all, summarise

TEMPLATE = Path(__file__).parent / "templates" / "report.html.jinja"
MOST_ERRORS = 50  # shown on the page for one configuration


def table(results: Sequence[Result], *, column: str | None = "category") -> str:
    """Results as aligned text, with a row for each configuration and a column for each value of
    `column`."""
    return aligned(_rows(results, column))


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as text, the first column to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _rows(results: Sequence[Result], column: str | None) -> list[list[str]]:
    """The head and the rows. Empty columns are left out."""
    kinds = sorted({k for r in results for k in r.by.get(column or "", {})})
    extra = list(dict.fromkeys(name for r in results for name in r.extra))
    head = ["", "tokens", "entering", "accuracy", "95% interval", "of dense", "+/-"]
    head += [
        "flips",
        "p",
        "p Holm",
        "hard",
        *extra,
        *kinds,
        "s each",
        "GMAC",
        "KV MiB",
        "peak MiB",
        "unread",
        "failed",
    ]
    rows = [[r.title, *_cells(r, column or "", kinds, extra)] for r in results]
    used = [i for i in range(len(head)) if i == 0 or any(row[i] for row in rows)]
    return [[row[i] for i in used] for row in (head, *rows)]


def _cells(result: Result, column: str, kinds: Sequence[str], extra: Sequence[str]) -> list[str]:
    accuracy, against, figures = result.accuracy, result.against, result.figures
    by = result.by.get(column, {})

    def figure(name: str, form: str, scale: float = 1.0) -> str:
        return format(figures[name] * scale, form) if name in figures else ""

    return [
        figure("tokens", ".1f"),
        figure("entering", ".1f"),
        "" if accuracy is None else f"{accuracy.mean:.1%}",
        "" if accuracy is None else f"{accuracy.low:.1%} .. {accuracy.high:.1%}",
        "" if result.share is None else f"{result.share:.1%}",
        "" if against is None else f"+{against.gained} -{against.lost}",
        "" if result.flips is None else f"{result.flips:.1%}",
        "" if against is None else f"{against.p:.2g}",
        "" if result.adjusted is None else f"{result.adjusted:.2g}",
        "" if result.hard is None else f"{result.hard.mean:.1%} of {result.hard.count}",
        *(_plain(result.extra[name]) if name in result.extra else "" for name in extra),
        *(f"{by[kind].mean:.1%}" if kind in by else "" for kind in kinds),
        figure("seconds", ".3f"),
        figure("macs", ".3g", 1e-9),
        figure("cache", ".2f", 2**-20),
        figure("memory", ".0f", 2**-20),
        str(result.unread or ""),
        str(len(result.errors) or ""),
    ]


def _plain(value: float) -> str:
    return f"{value:.1%}" if 0 <= value <= 1 else f"{value:.1f}"


def write_report(
    folder: Path,
    benchmark: Benchmark,
    samples: Sequence[Sample],
    arms: Sequence[Arm],
    *,
    problems: Sequence[Problem] = (),
    seed: int = 0,
) -> tuple[str, list[Path]]:
    """Score the results in a run's folder and write all reports.

    Writes `table.txt`, `summary.json`, `report.html`, `accuracy.png`, `by-<column>.png`, and into
    the folder of each configuration `scored.jsonl` and the files for the benchmark's own tools.

    Returns the table as text, and the paths of the reports.
    """
    records = {arm: read_records(folder / arm.folder) for arm in arms}
    results = summarise(benchmark, samples, records, seed=seed)
    chance = benchmark.chance(samples) if samples else None
    paths = []
    for arm in arms:
        scored = score_all(benchmark, samples, records[arm])
        lines = (
            json.dumps(
                {"key": s.sample.key, "answer": s.sample.answer, "text": s.text}
                | ({"error": s.error} if s.error else asdict(s.score)),
                ensure_ascii=False,
            )
            for s in scored
        )
        replace(folder / arm.folder / "scored.jsonl", "\n".join(lines) + "\n")
        paths += benchmark.export(scored, folder / arm.folder)
    columns = sorted({column for result in results for column in result.by})
    small = [c for c in columns if len({v for r in results for v in r.by.get(c, {})}) <= 8]
    text = table(results, column=small[0] if len(small) == 1 else None)
    notes = _notes(benchmark, samples, results, chance, problems)
    text = "\n".join([text, "", *notes])
    paths.append(replace(folder / "table.txt", text + "\n"))
    facts = {"chance": chance, "notes": notes, "results": [asdict(r) for r in results]}
    paths.append(replace(folder / "summary.json", json.dumps(facts, indent=1, default=repr) + "\n"))
    pictures = _pictures(benchmark, results, columns, chance)
    paths += [replace(folder / name, data) for name, data in pictures.items()]
    config = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    asked = (row for rows in records.values() for row in rows.values())
    prompt = next((row["prompt"] for row in asked if "prompt" in row), "")
    page = _page(benchmark, results, columns, notes, pictures, config, prompt)
    paths.append(replace(folder / "report.html", page))
    return text, paths


def _notes(
    benchmark: Benchmark,
    samples: Sequence[Sample],
    results: Sequence[Result],
    chance: float | None,
    problems: Sequence[Problem],
) -> list[str]:
    accuracy = next((r.accuracy for r in results if r.accuracy is not None), None)
    options = [f"{k}={v}" for k, v in benchmark.describe().items() if v is not None]
    notes = [f"{len(samples)} questions asked; {', '.join(options)}"]
    if accuracy is None:
        notes.append("The answers are hidden, so nothing is scored. Submit the exported file.")
    else:
        how = {
            "wilson": "Wilson's interval; p is of McNemar's exact test against dense",
            "bootstrap": f"bootstrap over {accuracy.clusters} clusters; p is of a sign-flip test "
            "by cluster against dense",
        }
        notes.append(f"{benchmark.metric} over {accuracy.count}; {how[accuracy.rule]}")
    if chance is not None:
        notes.append(f"chance (the best constant answers): {chance:.1%}")
    if problems:
        notes.append(f"LEFT OUT: {len(problems)} rows that cannot be used (problems.json)")
    failed = max((len(r.errors) for r in results), default=0)
    if failed:
        notes.append(f"NOT SCORED: up to {failed} questions whose media could not be read")
    return notes


def _pictures(
    benchmark: Benchmark, results: Sequence[Result], columns: Sequence[str], chance: float | None
) -> dict[str, bytes]:
    if not any(r.line != "dense" and "tokens" in r.figures and r.accuracy for r in results):
        return {}
    if importlib.util.find_spec("matplotlib") is None:  # an extra; the tables say the same
        return {}
    from eval import plots

    pictures = {"accuracy.png": plots.accuracy_curve(results, benchmark.name, chance)}
    for column in columns:
        if (picture := plots.group_curves(results, column)) is not None:
            pictures[f"by-{column}.png"] = picture
    return pictures


def _page(
    benchmark: Benchmark,
    results: Sequence[Result],
    columns: Sequence[str],
    notes: Sequence[str],
    pictures: Mapping[str, bytes],
    config: Mapping[str, Any],
    prompt: str,
) -> str:
    failures = {
        r.title: "\n".join(f"{key}: {why}" for key, why in list(r.errors.items())[:MOST_ERRORS])
        for r in results
        if r.errors
    }
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=benchmark.name,
        notes=notes,
        rows=_rows(results, None),
        pictures={name: base64.b64encode(data).decode() for name, data in pictures.items()},
        breakdowns={column: _group_rows(results, column) for column in columns},
        failures=failures,
        prompt=prompt,
        config=json.dumps(config, indent=1, ensure_ascii=False),
    )


def _group_rows(results: Sequence[Result], column: str) -> list[list[str]]:
    """A row for each value of `column`, with a cell for each configuration."""
    values = sorted({value for result in results for value in result.by.get(column, {})})
    rows = [[column, "n", *(result.title for result in results)]]
    for value in values:
        intervals = [result.by.get(column, {}).get(value) for result in results]
        count = max(i.count for i in intervals if i is not None)
        rows.append([value, str(count), *map(_shown, intervals)])
    return rows


def _shown(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"{interval.mean:.1%} ({interval.low:.0%} .. {interval.high:.0%})"
