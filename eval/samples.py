"""Questions, media and scores, which benchmarks, the runner and models exchange."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from PIL import Image

from vlm.media import MediaError, Video, read_image, read_video

Row = TypeVar("Row")


class DataError(ValueError):
    """A file of a benchmark cannot be used. The message says what is missing or wrong."""


@dataclass(frozen=True)
class Picture:
    """An image file: a path or its bytes, read when the question is asked."""

    source: Path | bytes
    kind: ClassVar[str] = "image"

    def load(self) -> Image.Image:
        """The image as RGB. Raises MediaError."""
        return read_image(self.source)


@dataclass(frozen=True)
class Drawing:
    """An image or video that is generated: `make()` returns a PIL image or a `Video`."""

    make: Any  # a function of no arguments
    kind: str = "image"

    def load(self) -> Any:
        """The image as RGB, or the video."""
        return self.make()


@dataclass(frozen=True)
class Clip:
    """Frames of a video: `frames` by the rule `sampling`, or `fps` a second up to `frames`.

    short: accept a video with fewer frames than asked for. end: seconds, of which only earlier
    frames are shown; None for all.
    """

    path: Path
    frames: int | None = None
    fps: float | None = None
    sampling: str = "uniform"
    short: bool = False
    end: float | None = None
    kind: ClassVar[str] = "video"

    def load(self) -> Video:
        """The frames with their times. Raises MediaError."""
        if self.fps is not None:
            return read_video(self.path, fps=self.fps, max_frames=self.frames, end=self.end)
        exact = not self.short
        return read_video(
            self.path, self.frames, sampling=self.sampling, exact_count=exact, end=self.end
        )


@dataclass(frozen=True)
class Sample:
    """One question.

    Attributes:
        key: unique in its benchmark; identifies the results of the question.
        prompt: the text, without placeholders for media.
        media: what is shown before the prompt.
        answer: what `score` compares with, or None if the benchmark hides it.
        options: letter -> text, of a multiple-choice question.
        spoken: what the model says to choose each option, in order, where it is not the letter.
        groups: column -> value, for the breakdown of results.
        cluster: a label that dependent questions share (default: the key).
        max_new_tokens: the longest answer.
        about: further columns for exported files.
        earlier: questions that the model is asked before the prompt, on the same media, and
            answers itself.
        complete: for a prompt that depends on the media, a function from `prompt` and the loaded
            media to the final prompt.
    """

    key: str
    prompt: str
    media: tuple[Any, ...] = ()
    answer: Any = None
    options: Mapping[str, str] = field(default_factory=dict)
    spoken: tuple[str, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)
    cluster: str = ""
    max_new_tokens: int = 16
    about: Mapping[str, Any] = field(default_factory=dict)
    earlier: tuple[str, ...] = ()
    complete: Callable[[str, tuple[Any, ...]], str] | None = None


@dataclass(frozen=True)
class Problem:
    """A row that cannot be used: its location, and what is wrong with it."""

    row: str
    what: str


@dataclass(frozen=True)
class Loaded:
    """The questions of a benchmark, and the rows that cannot be used."""

    samples: list[Sample]
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class Score:
    """The value of an answer in [0, 1], None if not scored, and what was read from its text."""

    value: float | None
    read: str | None


@dataclass(frozen=True)
class Scored:
    """A question with the generated text and its score. `error`: why it was not answered."""

    sample: Sample
    text: str
    score: Score
    error: str = ""


@dataclass(frozen=True)
class Unit:
    """What accuracy is the mean of: a question, or in CircularEval all rolls of a question."""

    key: str
    value: float
    cluster: str
    groups: Mapping[str, str]


@dataclass(frozen=True)
class Benchmark:
    """Base class of benchmarks. The fields are the whole configuration.

    A benchmark implements `load` for its official file and `score` for one answer. If accuracy is
    not the mean over questions, it overrides `units` and `extra`.
    """

    name: ClassVar[str] = ""
    help: ClassVar[str] = ""
    metric: ClassVar[str] = "accuracy"

    def load(self) -> Loaded:
        """Read the questions. Raises DataError if the whole file cannot be used."""
        raise NotImplementedError(type(self).__name__)

    def score(self, sample: Sample, text: str) -> Score:
        """The score of `text` as an answer to `sample`."""
        raise NotImplementedError(type(self).__name__)

    def units(self, scored: Sequence[Scored]) -> list[Unit]:
        """What accuracy is the mean of, without questions that failed or have no known answer."""
        return [
            Unit(s.sample.key, s.score.value, s.sample.cluster or s.sample.key, s.sample.groups)
            for s in scored
            if s.score.value is not None and not s.error
        ]

    def extra(self, scored: Sequence[Scored]) -> dict[str, float]:
        """Further figures by name."""
        return {}

    def sums(self, scored: Sequence[Scored]) -> dict[str, dict[str, float]]:
        """Cluster -> name -> sum: all that `published` needs, added up over dependent questions."""
        found: dict[str, dict[str, float]] = {}
        for unit in self.units(scored):
            row = found.setdefault(unit.cluster, {"right": 0.0, "asked": 0.0})
            row["right"] += unit.value
            row["asked"] += 1
        return found

    def published(self, sums: Mapping[str, Any]) -> Any:
        """The figure that papers report, from sums over clusters: numbers, or arrays of draws."""
        return 100 * sums["right"] / sums["asked"]

    def chance(self, samples: Sequence[Sample]) -> float | None:
        """The best accuracy without seeing the media, or None if it is not known."""
        return None

    def export(self, scored: Sequence[Scored], folder: Path) -> list[Path]:
        """Write files for the benchmark's own tools. Returns their paths."""
        return []

    def describe(self) -> dict[str, Any]:
        """The configuration as JSON values. It is part of the digest in a result folder's name."""
        settings = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        return {"benchmark": self.name, **settings}


def _plain(value: Any) -> Any:
    if callable(value):
        return f"{value.__module__}:{value.__qualname__}"
    return str(value) if isinstance(value, Path) else value


def collect(rows: Iterable[tuple[str, Row]], make: Callable[[Row], Sample]) -> Loaded:
    """Samples made by `make` from named rows. Rows that it refuses become problems.

    Rows that share a key become problems too, as they are ambiguous.
    """
    samples, problems = [], []
    for name, row in rows:
        try:
            samples.append(make(row))
        except KeyError as error:
            problems.append(Problem(name, f"no {error}"))
        except (ValueError, TypeError) as error:
            problems.append(Problem(name, str(error)))
    counts = Counter(s.key for s in samples)
    problems += [Problem(k, f"{n} rows have this key") for k, n in counts.items() if n > 1]
    return Loaded([s for s in samples if counts[s.key] == 1], problems)


def total(sums: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """`Benchmark.sums`, added up over clusters."""
    added: dict[str, float] = {}
    for row in sums.values():
        for name, value in row.items():
            added[name] = added.get(name, 0.0) + value
    return added


def first(samples: Sequence[Sample], count: int | None) -> list[Sample]:
    """The first `count` samples (None for all), extended to the end of the last cluster."""
    end = len(samples) if count is None else min(count, len(samples))
    while 0 < end < len(samples) and samples[end].cluster == samples[end - 1].cluster != "":
        end += 1
    return list(samples[:end])


def slug(text: str) -> str:
    """A text in the form of a file name."""
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", text).strip("-") or "x"


__all__ = [
    "Benchmark",
    "Clip",
    "DataError",
    "Drawing",
    "Loaded",
    "MediaError",
    "Picture",
    "Problem",
    "Sample",
    "Score",
    "Scored",
    "Unit",
    "collect",
    "first",
    "slug",
    "total",
]
