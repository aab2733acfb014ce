"""MME (Fu et al. 2023): two yes-or-no questions on each picture, in 14 tasks.

`data` is the official folder, with a folder for each task. It contains pictures, and for each a
text file of the same name with two lines "question<TAB>answer". Some tasks have them in the folders
images and questions_answers_YN. The score of a task is 100 * (accuracy + accuracy+), where
accuracy+ is the share of pictures with both answers right. Perception is the sum of 10 tasks,
cognition of 4.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from eval.extract import yes_no
from eval.files import folder
from eval.samples import (
    Benchmark,
    DataError,
    Loaded,
    Picture,
    Problem,
    Sample,
    Score,
    Scored,
    total,
)

PERCEPTION = (
    "existence count position color posters celebrity scene landmark artwork OCR".split()  # noqa: SIM905
)
COGNITION = ["commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"]
_SUFFIXES = (".jpg", ".png", ".jpeg", ".webp")


@dataclass(frozen=True)
class MME(Benchmark):
    """data: the folder with one folder for each task."""

    data: Path

    name: ClassVar[str] = "mme"
    help: ClassVar[str] = "MME folder, one folder in it for each task"

    def load(self) -> Loaded:
        """Read the questions of all tasks in the folder."""
        root = folder(self.data, "--data", "one folder for each task")
        known = [*PERCEPTION, *COGNITION]
        tasks = [task for task in known if (root / task).is_dir()]
        if not tasks:
            raise DataError(f"{root} contains none of the folders {', '.join(known)}")
        samples: list[Sample] = []
        problems = [Problem(task, "no such folder") for task in known if task not in tasks]
        for task in tasks:
            for path in _texts(root / task):
                try:
                    samples += _pair(task, path)
                except (ValueError, OSError) as error:
                    problems.append(Problem(f"{task}/{path.name}", str(error)))
        return Loaded(samples, problems)

    def score(self, sample: Sample, text: str) -> Score:
        """Whether the answer, read as yes or no, is right. Neither counts as wrong."""
        read = yes_no(text)
        return Score(float(read == sample.answer), read)

    def extra(self, scored: Sequence[Scored]) -> dict[str, float]:
        """The score of each task, and perception and cognition if all their tasks are present."""
        tasks = _scores(total(self.sums(scored)))
        sums = {}
        for name, wanted in (("perception", PERCEPTION), ("cognition", COGNITION)):
            if all(task in tasks for task in wanted):
                sums[name] = sum(tasks[task] for task in wanted)
        return sums | tasks

    def sums(self, scored: Sequence[Scored]) -> dict[str, dict[str, float]]:
        """By task: pictures, right answers, and pictures with both answers right."""
        pairs: dict[str, list[Scored]] = defaultdict(list)
        for s in scored:
            if s.score.value is not None and not s.error:
                pairs[s.sample.cluster].append(s)
        found = {}
        for picture, pair in pairs.items():
            task, values = pair[0].sample.groups["task"], [s.score.value or 0.0 for s in pair]
            if len(pair) == 2:
                names = (f"{task} pictures", f"{task} right", f"{task} both")
                found[picture] = dict(zip(names, (1.0, sum(values), min(values)), strict=True))
        return found

    def published(self, sums: Mapping[str, Any]) -> Any:
        """The sum of the scores of all tasks that were asked: perception and cognition."""
        return sum(_scores(sums).values())


def _scores(sums: Mapping[str, Any]) -> dict[str, Any]:
    """100 * (accuracy + accuracy+) of each task that was asked."""
    tasks = [name.removesuffix(" pictures") for name in sums if name.endswith(" pictures")]
    return {
        t: 100 * (sums[f"{t} right"] / 2 + sums[f"{t} both"]) / sums[f"{t} pictures"] for t in tasks
    }


def _texts(task: Path) -> Iterator[Path]:
    inner = task / "questions_answers_YN"
    yield from sorted((inner if inner.is_dir() else task).glob("*.txt"))


def _pair(task: str, path: Path) -> list[Sample]:
    places = (path.parent, path.parent.parent / "images")
    tried = [place / (path.stem + suffix) for place in places for suffix in _SUFFIXES]
    picture = next((p for p in tried if p.is_file()), None)
    if picture is None:
        raise ValueError(f"no picture {path.stem} with one of {', '.join(_SUFFIXES)}")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(lines) != 2:
        raise ValueError(f"{len(lines)} lines: expected two questions")
    samples = []
    for number, line in enumerate(lines):
        question, _, answer = line.rpartition("\t")
        answer = answer.strip().lower().rstrip(".")
        if answer not in ("yes", "no") or not question:
            raise ValueError(f"line {number + 1}: expected a question, a tab, and Yes or No")
        question = question.replace(" Please answer yes or no.", "")
        samples.append(
            Sample(
                key=f"{task}/{path.stem}/{number}",
                prompt=f"{question}\nAnswer the question using a single word or phrase.",
                media=(Picture(picture),),
                answer=answer,
                groups={"kind": "perception" if task in PERCEPTION else "cognition", "task": task},
                cluster=f"{task}/{path.stem}",
            )
        )
    return samples
