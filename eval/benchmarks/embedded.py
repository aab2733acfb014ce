"""The embedded benchmark: scenes that the embedded model never saw, five kinds of questions.

The questions of scene s of a split are those that `vlm.scenes.questions` draws from the generator
seeded with (s, number of the split + 1000). Answers are open: an answer is right if it is the text
wanted, surrounding space removed, and case too, except for what is read from a sign.
"""

from __future__ import annotations

import base64
import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from eval.files import media_file
from eval.samples import (
    Benchmark,
    DataError,
    Drawing,
    Loaded,
    Picture,
    Sample,
    Score,
    collect,
    png,
)
from vlm.scenes import (
    CHARACTERS,
    COLOURS,
    SHAPES,
    SLOTS,
    SPLITS,
    Question,
    Scene,
    Split,
    draw,
    make_scene,
    questions,
)

LETTERS = "ABCD"
_TOP = {"colour": "attribute", "shape": "attribute", "place": "relation", "count": "relation"}


@dataclass(frozen=True)
class Embedded(Benchmark):
    """Open answers about drawn scenes.

    split, scenes: which scenes are drawn, the first `scenes` of the split. data: instead, an
    `open.jsonl` that `write` made (its pictures beside it).
    """

    split: Split = "test"
    scenes: int = 200
    data: Path | None = None

    name: ClassVar[str] = "embedded"
    help: ClassVar[str] = "scenes that are drawn, or open.jsonl that make-embedded wrote"

    def load(self) -> Loaded:
        """Draw the questions, or read them from `data`."""
        if self.data is not None:
            return _read(self.data)
        if self.split not in SPLITS:
            raise DataError(f"split is {self.split!r}; expected one of {', '.join(SPLITS)}")
        if self.scenes < 1:
            raise DataError(f"scenes is {self.scenes}; expected at least 1")
        return Loaded(
            [
                _sample(f"{seed:05d}", question, Drawing(partial(_picture, seed, self.split)))
                for seed, _, asked in _scenes(self.split, self.scenes)
                for question in asked
            ]
        )

    def score(self, sample: Sample, text: str) -> Score:
        """Exact match, but for surrounding space and, for words, case."""
        read = text.strip()
        if sample.groups["category"] != "reading":
            read = read.lower()
        return Score(float(read == sample.answer), read)

    def chance(self, samples: Sequence[Sample]) -> float:
        """The best that one constant answer for each question template can do on these samples."""
        answers: dict[str, Counter[str]] = defaultdict(Counter)
        for sample in samples:
            answers[template(sample.prompt)][sample.answer] += 1
        return sum(max(counts.values()) for counts in answers.values()) / len(samples)


def template(prompt: str) -> str:
    """A question with the names of colours and shapes blanked."""
    names = "|".join([*COLOURS, *(f"{shape}(?:e?s)?" for shape in SHAPES)])
    return re.sub(rf"\b(?:{names})\b", "_", prompt)


def _scenes(split: Split, count: int) -> Iterator[tuple[int, Scene, list[Question]]]:
    for seed in range(count):
        scene = make_scene(seed, split)
        rng = np.random.default_rng((seed, SPLITS.index(split) + 1000))
        yield seed, scene, questions(scene, rng)


def _picture(seed: int, split: Split) -> Image.Image:
    return draw(make_scene(seed, split))


def _sample(scene: str, question: Question, media: Drawing | Picture) -> Sample:
    return Sample(
        key=f"{scene}-{question.category}",
        prompt=question.text,
        media=(media,),
        answer=question.answer,
        groups={"category": question.category},
        cluster=scene,
        max_new_tokens=8,
    )


# ------------------------------------------------------------------ files


def write(folder: Path, split: Split, scenes: int) -> list[Path]:
    """Write the benchmark as files: `open.jsonl`, `images/*.png` and `mmbench.tsv`.

    The TSV is in MMBench's form (four options, one row a question, vanilla: rolls are built when it
    is read); its first row of a scene holds the picture, the others the index of that row.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows: list[list[object]] = []
    with (folder / "open.jsonl").open("w", encoding="utf-8") as lines:
        for seed, scene, asked in _scenes(split, scenes):
            data = png(draw(scene))
            (folder / "images" / f"{seed:05d}.png").write_bytes(data)
            first = len(rows)
            for question in asked:
                row = {"scene": f"{seed:05d}", "image": f"images/{seed:05d}.png"}
                row |= {"category": question.category, "question": question.text}
                print(json.dumps(row | {"answer": question.answer}), file=lines)
                options = choices(scene, question, np.random.default_rng((seed, len(rows))))
                letter = LETTERS[options.index(question.answer)]
                image = base64.b64encode(data).decode() if len(rows) == first else str(first)
                group = _TOP.get(question.category, question.category)
                row_head = (len(rows), question.text, "", *options, letter, question.category)
                rows.append([*row_head, image, "drawn", group, "", split])
    head = "index question hint A B C D answer category image source l2-category comment split"
    with (folder / "mmbench.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(head.split())
        writer.writerows(rows)
    return [folder / "open.jsonl", folder / "mmbench.tsv"]


def choices(scene: Scene, question: Question, rng: np.random.Generator) -> list[str]:
    """Four options, the right one among them, in drawn order.

    The wrong ones are, where the picture has enough of them, things that it shows too, so that
    knowing what is there does not answer where it is.
    """
    category, answer = question.category, question.answer
    if category == "reading":
        seconds = [c for c in CHARACTERS if c != answer[1]]
        firsts = [c for c in CHARACTERS if c != answer[0]]
        i, j = rng.integers(len(seconds)), rng.integers(len(firsts))
        near = [answer[0] + seconds[i], firsts[j] + answer[1], firsts[j] + seconds[i]]
        rest: list[str] = []
    elif category == "count":
        near, rest = [], [str(n) for n in range(6)]
    elif category == "place":
        near = [f"row {i.row} column {i.column}" for i in scene.items]
        sides = range(1, SLOTS + 1)
        rest = [f"row {r} column {c}" for r in sides for c in sides]
    else:
        near = [getattr(item, category) for item in scene.items]
        rest = list(COLOURS if category == "colour" else SHAPES)
    wrong = [str(t) for group in (near, rest) for t in rng.permutation(sorted(set(group)))]
    wrong = [t for t in dict.fromkeys(wrong) if t != answer][: len(LETTERS) - 1]
    return [str(t) for t in rng.permutation([answer, *wrong])]


def _read(path: Path) -> Loaded:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"data: cannot read {path}: {error.strerror}") from error

    def make(line: str) -> Sample:
        row = json.loads(line)
        wanted = ("scene", "image", "category", "question", "answer")
        missing = [name for name in wanted if not isinstance(row.get(name), str)]
        if missing:
            raise ValueError(f"no text under {', '.join(missing)}")
        picture = Picture(media_file(path.parent, [row["image"]]))
        return _sample(row["scene"], Question(*(row[name] for name in wanted[2:])), picture)

    return collect(((f"line {number}", line) for number, line in enumerate(lines, 1)), make)
