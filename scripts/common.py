"""What the studies share: asking questions, reports of runs, and results in JSON.

A study writes its figures as JSON and renders its table and picture from that file alone.
`python -m scripts.results` renders all of them again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from eval.answerers import Answerer
from eval.arms import Arm
from eval.benchmarks.collage import Collage
from eval.benchmarks.embedded import Embedded
from eval.records import read_records
from eval.runner import open_run, run, versions
from eval.samples import Benchmark, Sample, Unit
from eval.statistics import Interval, Paired, holm, paired
from eval.summary import Result, score_all, summarise

RESULTS = Path("docs/results")
# Okabe and Ito's colours, black first.
COLOURS = ("#333333", "#0072B2", "#E69F00", "#CC79A7", "#009E73", "#D55E00", "#56B4E9")


class Asked:
    """The questions of a benchmark, put to a model with several configurations.

    Answers are kept below `work`. A question that was answered before is not asked again.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        answerer: Answerer,
        arms: Sequence[Arm],
        work: Path,
        seed: int = 0,
    ) -> None:
        self.benchmark = benchmark
        self.samples: list[Sample] = benchmark.load().samples
        sizes: Any = {"batch_size": 20, "seed": seed}
        folder = open_run(work, benchmark, self.samples, answerer, **sizes)
        run(folder, self.samples, answerer, arms, **sizes)
        self.records = {arm: read_records(folder / arm.folder) for arm in arms}

    @property
    def categories(self) -> list[str]:
        """The categories of the questions."""
        return sorted({sample.groups["category"] for sample in self.samples})

    def results(self) -> list[Result]:
        """The result of every configuration."""
        return summarise(self.benchmark, self.samples, self.records)

    def chance(self) -> dict[str, float | None]:
        """The accuracy of guessing, by category and of all questions."""
        by = {
            kind: self.benchmark.chance([s for s in self.samples if s.groups["category"] == kind])
            for kind in self.categories
        }
        return by | {"all": self.benchmark.chance(self.samples)}

    def units(self, arm: Arm) -> list[Unit]:
        """The units of one configuration: what the statistics count as one sample."""
        return self.benchmark.units(score_all(self.benchmark, self.samples, self.records[arm]))


def questions_for(model: str, split: Any, scenes: int, clips: int) -> Benchmark:
    """What a judge is asked: collages for "small", else drawn scenes and clips."""
    return Collage(split, scenes) if model == "small" else Embedded(split, scenes, clips)


def mean(units: Sequence[Unit]) -> float:
    """The share of units that are right."""
    return sum(unit.value for unit in units) / len(units)


def against(reference: Sequence[Unit], other: Sequence[Unit]) -> dict[str, Any]:
    """The paired test on the same questions, other minus reference, as a dictionary."""
    values = [u.value for u in reference], [u.value for u in other]
    return asdict(paired(*values, [u.cluster for u in reference]))


def with_holm(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a table of tests, each with its p value after Holm's correction as `holm`."""
    adjusted = holm([row["p"] for row in rows])
    return [row | {"holm": p} for row, p in zip(rows, adjusted, strict=True)]


def facts(script: str, argv: list[str] | None, **more: Any) -> dict[str, Any]:
    """A report: command, versions and hardware of `python -m scripts.<script>`, and its results."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    given = sys.argv[1:] if argv is None else argv
    return {
        "command": shlex.join(["python", "-m", f"scripts.{script}", *given]),
        "versions": versions(),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "gpu": gpu},
        **more,
    }


def write_json(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Write a report as JSON. Returns it as it is read back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1, default=repr) + "\n"
    path.write_text(text, encoding="utf-8")
    return json.loads(text)


def write_table(path: Path, text: str) -> None:
    """Print a table, and write it as Markdown."""
    print(text)
    path.with_suffix(".md").write_text(f"```\n{text}\n```\n", encoding="utf-8")


def result_of(row: dict[str, Any]) -> Result:
    """A `Result` from its row of a report."""
    by = {
        column: {value: Interval(**interval) for value, interval in values.items()}
        for column, values in row["by"].items()
    }
    accuracy = Interval(**row["accuracy"]) if row["accuracy"] else None
    beside = Paired(**row["against"]) if row["against"] else None
    hard = Interval(**row["hard"]) if row.get("hard") else None
    return Result(**{**row, "accuracy": accuracy, "against": beside, "by": by, "hard": hard})


def add_folders(parser: argparse.ArgumentParser, work: str) -> None:
    """Add the folders of a study: `--work` for raw answers, and `--output`."""
    parser.add_argument("--work", type=Path, default=Path(work), help="raw answers")
    parser.add_argument("--output", type=Path, default=RESULTS)


def canvas(width: float, height: float) -> tuple[Any, Any]:
    """A figure without a display, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
