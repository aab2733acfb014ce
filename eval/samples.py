"""What passes between a benchmark, the runner and a model: questions, media, scores."""

from __future__ import annotations

import io
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
    """A benchmark's file cannot be used; the message lists what is missing or wrong."""


@dataclass(frozen=True)
class Picture:
    """One image: a path, or the bytes of a file, read when its question is asked."""

    source: Path | bytes
    kind: ClassVar[str] = "image"

    def load(self) -> Image.Image:
        """The image as RGB. Raises MediaError."""
        return read_image(self.source)


@dataclass(frozen=True)
class Drawing:
    """One image or video that is made, not read: `make()` gives a PIL image, or a `Video`."""

    make: Any  # a function of no arguments
    kind: str = "image"

    def load(self) -> Any:
        """The image as RGB, or the video."""
        return self.make()


@dataclass(frozen=True)
class Clip:
    """Frames of one video: `frames` by the rule `sampling`, or `fps` a second up to `frames`.

    short: whether a video that has fewer frames than asked is taken all the same.
    """

    path: Path
    frames: int | None = None
    fps: float | None = None
    sampling: str = "uniform"
    short: bool = False
    kind: ClassVar[str] = "video"

    def load(self) -> Video:
        """The frames with their times. Raises MediaError."""
        if self.fps is not None:
            return read_video(self.path, fps=self.fps, max_frames=self.frames)
        exact = not self.short
        return read_video(self.path, self.frames, sampling=self.sampling, exact_count=exact)


@dataclass(frozen=True)
class Sample:
    """One question, as it is put to a model.

    key: unique in its benchmark; results are told apart and resumed by it. prompt: the text,
    without placeholders of media. media: what is shown before it. answer: what `score` compares
    with, or None where the benchmark hides it. options: letter -> text, of a multiple choice.
    groups: column -> value, for the breakdown. cluster: questions that are not independent share
    it (default: the key). about: further columns that exported files need. complete: makes the
    prompt out of `prompt` and the media as they were read, where it depends on them.
    """

    key: str
    prompt: str
    media: tuple[Any, ...] = ()
    answer: Any = None
    options: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    cluster: str = ""
    max_new_tokens: int = 16
    about: Mapping[str, Any] = field(default_factory=dict)
    complete: Callable[[str, tuple[Any, ...]], str] | None = None


@dataclass(frozen=True)
class Problem:
    """One row that cannot be asked as it is: where it stands and what is wrong with it."""

    row: str
    what: str


@dataclass(frozen=True)
class Loaded:
    """The questions of a benchmark, and the rows that had to be left out."""

    samples: list[Sample]
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class Score:
    """What an answer is worth (0..1) and what was understood of it; value None: not scored."""

    value: float | None
    read: str | None


@dataclass(frozen=True)
class Scored:
    """A question with the text that a model gave and its score. `error`: it was not answered."""

    sample: Sample
    text: str
    score: Score
    error: str = ""


@dataclass(frozen=True)
class Unit:
    """What accuracy counts: by default a question, in CircularEval all rolls of one."""

    key: str
    value: float
    cluster: str
    groups: Mapping[str, str]


@dataclass(frozen=True)
class Benchmark:
    """Base of the benchmarks: a dataclass whose fields are its whole configuration.

    A benchmark says how to `load` its official file, how to `score` one answer, and, where accuracy
    is not the mean over questions, its `units` and `extra` figures.
    """

    name: ClassVar[str] = ""
    help: ClassVar[str] = ""
    metric: ClassVar[str] = "accuracy"

    def load(self) -> Loaded:
        """Read the questions. Raises DataError if the file cannot be used at all."""
        raise NotImplementedError(type(self).__name__)

    def score(self, sample: Sample, text: str) -> Score:
        """What `text` is worth as an answer to `sample`."""
        raise NotImplementedError(type(self).__name__)

    def units(self, scored: Sequence[Scored]) -> list[Unit]:
        """What accuracy is the mean of; questions that failed or hide their answer are left out."""
        return [
            Unit(s.sample.key, s.score.value, s.sample.cluster or s.sample.key, s.sample.groups)
            for s in scored
            if s.score.value is not None and not s.error
        ]

    def extra(self, scored: Sequence[Scored]) -> dict[str, float]:
        """Further figures of the benchmark, by name."""
        return {}

    def chance(self, samples: Sequence[Sample]) -> float | None:
        """What a model that sees nothing gets at most, where that is known."""
        return None

    def export(self, scored: Sequence[Scored], folder: Path) -> list[Path]:
        """Write the files that the benchmark's own tools read, and say which."""
        return []

    def describe(self) -> dict[str, Any]:
        """The configuration, as JSON; part of what names a result folder."""
        settings = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        return {"benchmark": self.name, **settings}


def _plain(value: Any) -> Any:
    if callable(value):
        return f"{value.__module__}:{value.__qualname__}"
    return str(value) if isinstance(value, Path) else value


def collect(rows: Iterable[tuple[str, Row]], make: Callable[[Row], Sample]) -> Loaded:
    """The samples that `make` makes of named rows; those it refuses become problems.

    Questions that share a key are left out too: which of them is meant, none can say.
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


def first(samples: Sequence[Sample], count: int | None) -> list[Sample]:
    """The first `count` samples, and those of the last one's cluster that follow; None for all."""
    end = len(samples) if count is None else min(count, len(samples))
    while 0 < end < len(samples) and samples[end].cluster == samples[end - 1].cluster != "":
        end += 1
    return list(samples[:end])


def slug(text: str) -> str:
    """A text as part of a file name."""
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", text).strip("-") or "x"


def png(image: Image.Image) -> bytes:
    """The bytes of an image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


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
    "png",
    "slug",
]
