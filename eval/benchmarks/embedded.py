"""The embedded benchmark: scenes and clips that the embedded model never saw, in seven categories.

The questions about scene (clip) s of a split are drawn by `vlm.embedded.scenes` from the generator
with the seed (s, number of the split + 1000, 0 (1)). Answers are open. An answer is right if it
equals the expected text, ignoring surrounding white space and, except for what is read from a sign,
case.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
)
from vlm.embedded.mmbench import rows_of, write_rows
from vlm.embedded.scenes import (
    COLOURS,
    FRAMES,
    SHAPES,
    SPLITS,
    Item,
    Question,
    Split,
    candidates,
    clip_questions,
    draw,
    draw_clip,
    make_clip,
    make_scene,
    multiple_choice,
    options,
    questions,
)
from vlm.media import Video, png, read_image


@dataclass(frozen=True)
class Asked:
    """All questions about one scene or clip, and the items that it shows."""

    key: str
    questions: list[Question]
    shown: list[Item]
    media: Drawing


@dataclass(frozen=True)
class Embedded(Benchmark):
    """Questions about drawn scenes and clips.

    split, scenes, clips: the first scenes and clips of a split. choices: ask multiple-choice
    questions. blind: ask without pictures and videos, to measure what the words give away. data:
    instead of drawing, read an `open.jsonl` from `make-embedded` with its pictures.
    """

    split: Split = "test"
    scenes: int = 200
    clips: int = 100
    choices: bool = False
    blind: bool = False
    data: Path | None = None

    name: ClassVar[str] = "embedded"
    help: ClassVar[str] = "drawn scenes and clips, or the open.jsonl of make-embedded"

    def load(self) -> Loaded:
        """Draw the questions, or read them from `data`."""
        if self.data is not None:
            loaded = _read(self.data)
        else:
            if self.split not in SPLITS:
                raise DataError(f"split is {self.split!r}; expected one of {', '.join(SPLITS)}")
            for name, count in (("scenes", self.scenes), ("clips", self.clips)):
                if count < 0 or self.scenes + self.clips < 1:
                    raise DataError(
                        f"{name} is {count}: expected 0 or more, and at least one scene or clip"
                    )
            loaded = Loaded(
                [
                    _sample(asked.key, number, self._form(question, asked, number), asked.media)
                    for asked in _all(self.split, self.scenes, self.clips)
                    for number, question in enumerate(asked.questions)
                ]
            )
        if self.blind:
            return replace(loaded, samples=[replace(s, media=()) for s in loaded.samples])
        return loaded

    def _form(self, question: Question, asked: Asked, number: int) -> Question:
        if not self.choices:
            return question
        rng = np.random.default_rng((int(asked.key[1:]), number))
        return multiple_choice(question, options(question, asked.shown, rng))

    def score(self, sample: Sample, text: str) -> Score:
        """Exact match, ignoring surrounding white space and, for words, case."""
        read = text.strip()
        if sample.groups["category"] != "reading" and not self.choices:
            read = read.lower()
        return Score(float(read == sample.answer), read)

    def chance(self, samples: Sequence[Sample]) -> float:
        """The best accuracy of one constant answer for each question template on these samples.

        If the question names the candidates, the constant is an index among them.
        """
        answers: dict[str, Counter[str]] = defaultdict(Counter)
        for sample in samples:
            named = candidates(sample.prompt)
            answer = str(named.index(sample.answer)) if sample.answer in named else sample.answer
            answers[template(sample.prompt)][answer] += 1
        return sum(max(counts.values()) for counts in answers.values()) / len(samples)


def template(prompt: str) -> str:
    """A question with the names of colours and shapes replaced by blanks."""
    names = "|".join([*COLOURS, *(f"{shape}(?:e?s)?" for shape in SHAPES)])
    return re.sub(rf"\b(?:{names})\b", "_", prompt)


def _all(split: Split, scenes: int, clips: int) -> Iterator[Asked]:
    place = SPLITS.index(split) + 1000
    for seed in range(scenes):
        scene = make_scene(seed, split)
        asked = questions(scene, np.random.default_rng((seed, place, 0)))
        picture = Drawing(partial(_picture, seed, split))
        yield Asked(f"s{seed:05d}", asked, list(scene.items), picture)
    for seed in range(clips):
        clip = make_clip(seed, split)
        asked = clip_questions(clip, np.random.default_rng((seed, place, 1)))
        shown = [item for frame in clip.frames for item in frame.items]
        yield Asked(f"c{seed:05d}", asked, shown, Drawing(partial(_video, seed, split), "video"))


def _picture(seed: int, split: Split) -> Image.Image:
    return draw(make_scene(seed, split))


def _video(seed: int, split: Split) -> Video:
    return as_video(draw_clip(make_clip(seed, split)))


def _read_video(frames: tuple[Path, ...]) -> Video:
    return as_video([read_image(frame) for frame in frames])


def as_video(frames: Sequence[Image.Image]) -> Video:
    """Frames, one second apart, as a video."""
    count = len(frames)
    stacked = np.stack([np.asarray(frame) for frame in frames])
    return Video(stacked, np.arange(count, dtype=float), np.arange(count), 1.0, float(count), "")


def _sample(key: str, number: int, question: Question, media: Drawing | Picture) -> Sample:
    return Sample(
        key=f"{key}-{number}-{question.category}",
        prompt=question.text,
        media=(media,),
        answer=question.answer,
        groups={"category": question.category, "media": media.kind},
        cluster=key,
        max_new_tokens=8,
    )


# ------------------------------------------------------------------ files


def write(folder: Path, split: Split, scenes: int, clips: int) -> list[Path]:
    """Write the benchmark as files: `open.jsonl`, `images/*.png` and `mmbench.tsv`.

    The TSV has MMBench's form, with up to four options and one row for each question about a
    picture. Rolls are built when it is read. The first row of a scene contains the picture, the
    others the index of that row.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows: list[list[object]] = []
    with (folder / "open.jsonl").open("w", encoding="utf-8") as lines:
        for asked in _all(split, scenes, clips):
            media = asked.media.load()
            still = not isinstance(media, Video)
            frames = [png(f) for f in ([media] if still else map(Image.fromarray, media.frames))]
            names = [f"images/{asked.key}-{k}.png" for k in range(len(frames))]
            for name, data in zip(names, frames, strict=True):
                (folder / name).write_bytes(data)
            first, chosen = len(rows), []
            for number, question in enumerate(asked.questions):
                row = {"key": asked.key, "number": number, "images": names}
                row |= {"category": question.category, "question": question.text}
                print(json.dumps(row | {"answer": question.answer}), file=lines)
                if still:
                    rng = np.random.default_rng((first, number))
                    listed = options(question, asked.shown, rng)
                    chosen.append((question.category, question.text, question.answer, listed))
            if still:
                rows += rows_of(first, frames[0], chosen, split)
    write_rows(folder / "mmbench.tsv", rows)
    return [folder / "open.jsonl", folder / "mmbench.tsv"]


def _read(path: Path) -> Loaded:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"data: cannot read {path}: {error.strerror}") from error

    def make(line: str) -> Sample:
        row = json.loads(line)
        wanted = ("key", "category", "question", "answer")
        missing = [name for name in wanted if not isinstance(row.get(name), str)]
        if missing:
            raise ValueError(f"no text under {', '.join(missing)}")
        if not isinstance(row.get("images"), list) or len(row["images"]) not in (1, FRAMES):
            raise ValueError(f"images is {row.get('images')!r}: expected a list of 1 or {FRAMES}")
        frames = tuple(media_file(path.parent, [name]) for name in row["images"])
        still = len(frames) == 1
        media = Picture(frames[0]) if still else Drawing(partial(_read_video, frames), "video")
        question = Question(*(row[name] for name in wanted[1:]))
        return _sample(row["key"], int(row.get("number", 0)), question, media)

    return collect(((f"line {number}", line) for number, line in enumerate(lines, 1)), make)
