"""Video-MME (Fu et al. 2024): three questions about each of 900 videos, optionally with subtitles.

`data` is the official parquet file, the same rows as JSON, or JSON in the form of the official
result file: a list of videos with their `questions`. Videos are <videoID>.mp4 or
video/<videoID>.mp4 in `media`, subtitles are subtitle/<videoID>.srt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from eval.extract import Judge, choice
from eval.files import folder, media_file, need, read_rows
from eval.records import replace
from eval.samples import Benchmark, Clip, DataError, Loaded, Sample, Score, Scored, collect
from eval.subtitles import Subtitle, read_srt, shown_at
from vlm.media import Video

GROUPS = ("duration", "domain", "sub_category", "task_type")
_QUESTION = ("question_id", "question", "options", "answer")
SAMPLINGS = ("uniform", "linspace", "vlmevalkit", "adaptive")
_SUFFIXES = (".mp4", ".MP4", ".mkv", ".webm")
_ASK = (
    "Select the best answer to the following multiple-choice question based on the video{also}. "
    "Respond with only the letter (A, B, C, or D) of the correct option.\n"
    "{question}\n{options}\nThe best answer is:"
)
_SUBTITLES = "This video's subtitles are listed below:\n{subtitles}\n"


@dataclass(frozen=True)
class VideoMME(Benchmark):
    """data, media: see the module. frames: the number of frames, chosen by the rule `sampling` (see
    `vlm.media.sample_indices`); with fps, the largest number. subtitles: put the subtitles that are
    on screen at those frames before the question. short: accept videos with too few frames.
    """

    data: Path
    media: Path | None = None
    frames: int = 64
    fps: float | None = None
    sampling: str = "uniform"
    subtitles: bool = False
    short: bool = False
    judge: Judge | None = field(default=None, repr=False)

    name: ClassVar[str] = "videomme"
    help: ClassVar[str] = "Video-MME parquet or JSON, with the folder of videos"

    def __post_init__(self) -> None:
        if self.frames < 1 or (self.fps is not None and not self.fps > 0):
            raise DataError(f"frames={self.frames}, fps={self.fps}: expected positive numbers")
        if self.sampling not in SAMPLINGS:
            known = ", ".join(SAMPLINGS)
            raise DataError(f"sampling is {self.sampling!r}; expected one of {known}")

    def load(self) -> Loaded:
        """Read the questions and locate their videos and subtitles."""
        media = folder(self.media, "--media", "<videoID>.mp4 or video/<videoID>.mp4")
        rows = list(_flat(read_rows(self.data)))
        if rows:
            need(rows[0], (*_QUESTION, "video_id", *GROUPS), self.data)
        named = ((f"row {n} ({row.get('question_id')})", row) for n, row in enumerate(rows, 1))
        return collect(named, lambda row: self._sample(row, media))

    def _sample(self, row: dict[str, Any], media: Path) -> Sample:
        texts = row["options"]
        if not isinstance(texts, list) or not 2 <= len(texts) <= 8:
            raise ValueError(f"options are {texts!r}: expected a list of texts")
        options = {}
        for letter, text in zip("ABCDEFGH", texts, strict=False):
            if not str(text).startswith(f"{letter}."):
                raise ValueError(f"option {text!r}: expected it to begin with '{letter}.'")
            options[letter] = str(text)[2:].strip()
        answer = row["answer"] or None
        if answer is not None and answer not in options:
            raise ValueError(f"answer is {answer!r}: expected one of {', '.join(options)}")
        video = str(row.get("videoID") or row["video_id"])
        path = media_file(media, [f"{d}{video}{s}" for d in ("", "video/") for s in _SUFFIXES])
        complete = None
        if self.subtitles:
            srt = media_file(media, [f"subtitle/{video}.srt", f"{video}.srt"])
            complete = partial(_with_subtitles, tuple(read_srt(srt)))
        also = " and the subtitles" if self.subtitles else ""
        return Sample(
            key=str(row["question_id"]),
            prompt=_ASK.format(also=also, question=row["question"], options="\n".join(texts)),
            media=(Clip(path, self.frames, self.fps, self.sampling, self.short),),
            answer=answer,
            options=options,
            groups={name: row[name] for name in GROUPS},
            cluster=video,
            about=row,
            complete=complete,
        )

    def score(self, sample: Sample, text: str) -> Score:
        """Whether the answer chooses the right option."""
        read = choice(text, sample.options, self.judge)
        return Score(None if sample.answer is None else float(read == sample.answer), read)

    def export(self, scored: Sequence[Scored], folder: Path) -> list[Path]:
        """Write the official result file: videos with their questions and `response`s."""
        videos: dict[str, dict[str, Any]] = {}
        for answer in scored:
            row = answer.sample.about
            head = {k: row[k] for k in ("video_id", "duration", "domain", "sub_category")}
            video = videos.setdefault(answer.sample.cluster, {**head, "questions": []})
            names = ("question_id", "task_type", "question", "options", "answer")
            asked = {k: row[k] for k in names}
            video["questions"].append({**asked, "response": answer.text})
        text = json.dumps(list(videos.values()), ensure_ascii=False, indent=2)
        return [replace(folder / "videomme_results.json", text + "\n")]


def _flat(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        if "questions" not in row:
            yield row
            continue
        video = {k: v for k, v in row.items() if k != "questions"}
        for question in row["questions"]:
            yield {**video, **question}


def _with_subtitles(subtitles: Sequence[Subtitle], prompt: str, media: tuple[Any, ...]) -> str:
    video: Video = media[0]
    lines = shown_at(subtitles, video.timestamps.tolist())
    return _SUBTITLES.format(subtitles="\n".join(lines)) + prompt
