"""OVO-Bench (Li et al. 2025, arXiv 2501.05510): questions at a moment of a video.

`data` is the official `ovo_bench_new.json`. Its tasks form three parts that are kept apart:
backward tracing, real-time perception, and forward active responding, whose questions are asked
again at several moments. Videos are named in the file, below `media`. A question sees the video up
to its moment. The official figures are means over tasks, see `extra`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from eval.extract import Judge, choice, yes_no
from eval.files import folder, media_file, need, read_json
from eval.samples import Benchmark, Clip, DataError, Loaded, Sample, Score, Scored, collect

PARTS = {
    "backward": ("EPM", "ASI", "HLD"),
    "realtime": ("OCR", "ACR", "ATR", "STU", "FPD", "OJR"),
    "forward": ("REC", "SSR", "CRR"),
}
PART_OF = {task: part for part, tasks in PARTS.items() for task in tasks}
_SHORT = "Do not include any additional text or explanation in your response."
_CHOOSE = (
    "Question: {question}\nOptions:\n{options}\nRespond only with the letter corresponding to your "
    f"chosen option (e.g., A, B, C).\n{_SHORT}"
)
_COUNT = (
    "You're watching a video in which people may perform a certain type of action repetively.\n"
    "The person performing this kind of action are referred to as 'they' in the following "
    "statement.\nYou're task is to count how many times have different people in the video perform "
    "this kind of action in total.\nOne complete motion counts as one.\nNow, answer the following "
    "question: How many times did they {activity}?\nProvide your answer as a single number (e.g., "
    f"0, 1, 2, 3…) indicating the total count.\n{_SHORT}"
)
_STEP = (
    "You're watching a tutorial video which contain a sequential of steps.\nThe following is one "
    "step from the whole procedures:\n{step}\nYour task is to determine if the man or woman in the "
    f"video is currently performing this step.\nAnswer only with “Yes” or “No”.\n{_SHORT}"
)
_ENOUGH = (
    "You're responsible of answering questions based on the video content.\nThe following question "
    "are relevant to the latest frames, i.e. the end of the video.\n{question}\nDecide whether "
    "existing visual content, especially latest frames, i.e. frames that near the end of the "
    "video, provide enough information for answering the question.\nAnswer only with “Yes” or "
    f"“No”.\n{_SHORT}"
)


@dataclass(frozen=True)
class OVOBench(Benchmark):
    """data, media: see the module. part: "backward", "realtime" or "forward" alone, None for all.
    frames, fps: the frames of the video up to the question's moment: `fps` a second, at most
    `frames`, evenly spaced."""

    data: Path
    media: Path | None = None
    part: str | None = None
    frames: int = 64
    fps: float = 1.0
    judge: Judge | None = field(default=None, repr=False)

    name: ClassVar[str] = "ovobench"
    help: ClassVar[str] = "OVO-Bench's ovo_bench_new.json, with the folder of videos"

    def __post_init__(self) -> None:
        if self.part is not None and self.part not in PARTS:
            raise DataError(f"part is {self.part!r}; expected one of {', '.join(PARTS)}")
        if self.frames < 1 or not self.fps > 0:
            raise DataError(f"frames={self.frames}, fps={self.fps}: expected positive numbers")

    def load(self) -> Loaded:
        """Read the questions and locate their videos."""
        media = folder(self.media, "--media", "the videos that the file names")
        rows = read_json(self.data)
        if not isinstance(rows, list) or not rows:
            raise DataError(f"{self.data}: expected a list of questions")
        need(rows[0], ("id", "task", "video"), self.data)
        named = (
            (f"row {number} ({row.get('id')})", one)
            for number, row in enumerate(rows, 1)
            if self.part in (None, PART_OF.get(row.get("task"), self.part))
            for one in _moments(row)
        )
        return collect(named, lambda row: self._sample(row, media))

    def _sample(self, row: dict[str, Any], media: Path) -> Sample:
        task = row["task"]
        if task not in PART_OF:
            raise ValueError(f"task is {task!r}: expected one of {', '.join(PART_OF)}")
        prompt, options, answer = _question(row)
        seconds = float(row["realtime"])
        if not seconds > 0:
            raise ValueError(f"realtime is {seconds:g}: expected a moment after the beginning")
        path = media_file(media, [row["video"]])
        moment = row.get("moment")
        return Sample(
            key=f"{row['id']}" if moment is None else f"{row['id']}-{moment}",
            prompt=prompt,
            media=(Clip(path, self.frames, self.fps, end=seconds),),
            answer=answer,
            options=options,
            groups={"part": PART_OF[task], "task": task},
            cluster=str(row["video"]),
            about=row,
        )

    def score(self, sample: Sample, text: str) -> Score:
        """Whether the letter, the number or yes and no are right."""
        task = sample.groups["task"]
        if task == "REC":  # all digits of the answer, as the official score reads them
            read: str | None = "".join(re.findall(r"\d", text)) or None
        elif PART_OF[task] == "forward":
            read = yes_no(text)
        else:
            read = choice(text, sample.options, self.judge)
        return Score(float(read == sample.answer), read)

    def extra(self, scored: Sequence[Scored]) -> dict[str, float]:
        """The mean over its tasks of each part, and over all tasks, as the official score."""
        tasks: dict[str, list[float]] = {}
        for unit in self.units(scored):
            tasks.setdefault(unit.groups["task"], []).append(unit.value)
        means = {task: sum(values) / len(values) for task, values in tasks.items()}
        found = {}
        for part, names in PARTS.items():
            own = [means[name] for name in names if name in means]
            if own:
                found[f"{part} (mean of tasks)"] = sum(own) / len(own)
        if means:
            found["all (mean of tasks)"] = sum(means.values()) / len(means)
        return found


def _moments(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row, or one for each moment at which it is asked."""
    if "test_info" not in row:
        yield row
        return
    for number, info in enumerate(row["test_info"]):
        yield {**row, **info, "moment": number}


def _question(row: dict[str, Any]) -> tuple[str, dict[str, str], str]:
    """The prompt, the options and the answer."""
    task = row["task"]
    if task == "REC":
        return _COUNT.format(activity=row["activity"]), {}, str(int(row["count"]))
    if task in PARTS["forward"]:
        enough = task == "CRR"
        prompt = (
            _ENOUGH.format(question=row["question"]) if enough else _STEP.format(step=row["step"])
        )
        return prompt, {}, "yes" if row["type"] else "no"
    texts = row["options"]
    if not isinstance(texts, list) or not 2 <= len(texts) <= 8:
        raise ValueError(f"options are {texts!r}: expected a list of texts")
    options = dict(zip("ABCDEFGH", map(str, texts), strict=False))
    if not 0 <= row["gt"] < len(texts):
        raise ValueError(f"gt is {row['gt']}: expected the index of an option")
    listed = "; ".join(f"{letter}. {text}" for letter, text in options.items())
    prompt = _CHOOSE.format(question=row["question"], options=f"{listed};")
    return prompt, options, "ABCDEFGH"[row["gt"]]
