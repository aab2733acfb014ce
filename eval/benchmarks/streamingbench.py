"""StreamingBench (Lin et al. 2024, arXiv 2411.03628): questions while a video is playing.

`data` is an official JSON file: a list of parts of videos with their `questions`. Real-time visual
understanding has four options a question; so have the omni-source and contextual files. Proactive
output, without options, is not read. Videos are named by `video_path`, below `media`. A question
sees the video up to its `time_stamp`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from eval.extract import Judge, choice
from eval.files import folder, media_file, read_json
from eval.samples import Benchmark, Clip, DataError, Loaded, Sample, Score, collect

_ASK = (
    "You are an advanced video question-answering AI assistant. You have been provided with some "
    "frames from the video and a multiple-choice question related to the video. Your task is to "
    "carefully analyze the video and provide the best answer to question, choosing from the four "
    "options provided. Respond with only the letter (A, B, C, or D) of the correct option.\n\n"
    "Question: {question}\n\nOptions:\n{options}\n\nThe best option is:"
)


@dataclass(frozen=True)
class StreamingBench(Benchmark):
    """data, media: see the module. frames, fps: the frames of the video up to the question's
    moment: `fps` a second, at most `frames`."""

    data: Path
    media: Path | None = None
    frames: int = 64
    fps: float = 1.0
    judge: Judge | None = field(default=None, repr=False)

    name: ClassVar[str] = "streamingbench"
    help: ClassVar[str] = "a JSON file of StreamingBench, with the folder of videos"

    def __post_init__(self) -> None:
        if self.frames < 1 or not self.fps > 0:
            raise DataError(f"frames={self.frames}, fps={self.fps}: expected positive numbers")

    def load(self) -> Loaded:
        """Read the questions and locate their videos."""
        media = folder(self.media, "--media", "the videos that `video_path` names")
        rows = read_json(self.data)
        if not isinstance(rows, list) or not rows or "questions" not in rows[0]:
            raise DataError(f"{self.data}: expected a list of parts of videos with `questions`")
        return collect(_named(rows), lambda row: self._sample(row, media))

    def _sample(self, row: dict[str, Any], media: Path) -> Sample:
        options = _options(row["options"])
        answer = str(row["answer"]).strip()
        if answer not in options:
            raise ValueError(f"answer is {answer!r}: expected one of {', '.join(options)}")
        path = str(row["video_path"])
        names = [path.removeprefix("./"), path.removeprefix("./").removeprefix("videos/")]
        listed = "\n".join(f"{letter}. {text}" for letter, text in options.items())
        return Sample(
            key=row["key"],
            prompt=_ASK.format(question=row["question"], options=listed),
            media=(
                Clip(
                    media_file(media, names), self.frames, self.fps, end=_seconds(row["time_stamp"])
                ),
            ),
            answer=answer,
            options=options,
            groups={"task_type": str(row["task_type"])},
            cluster=path,
            about=row,
        )

    def score(self, sample: Sample, text: str) -> Score:
        """Whether the answer chooses the right option."""
        read = choice(text, sample.options, self.judge)
        return Score(float(read == sample.answer), read)


def _named(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Questions with what their part of a video says of them, by place in the file."""
    for number, part in enumerate(rows, 1):
        shared = {name: value for name, value in part.items() if name != "questions"}
        for place, question in enumerate(part["questions"], 1):
            key = f"{number}-{place}"
            yield f"part {number}, question {place}", {**shared, **question, "key": key}


def _options(texts: Any) -> dict[str, str]:
    """Letter to text, of options with or without their letter in front."""
    if not isinstance(texts, list) or not 2 <= len(texts) <= 8:
        raise ValueError(f"options are {texts!r}: expected a list of texts")
    options = {}
    for letter, text in zip("ABCDEFGH", map(str, texts), strict=False):
        options[letter] = text.removeprefix(f"{letter}.").strip()
    return options


def _seconds(stamp: str) -> float:
    """Seconds of "hh:mm:ss". Raises ValueError for other forms and for the beginning."""
    try:
        seconds = 0.0
        for part in str(stamp).split(":"):
            seconds = 60 * seconds + float(part)
    except ValueError:
        raise ValueError(f"time_stamp is {stamp!r}: expected hh:mm:ss") from None
    if not seconds > 0:
        raise ValueError(f"time_stamp is {stamp!r}: expected a moment after the beginning")
    return seconds
