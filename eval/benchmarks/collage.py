"""Questions in plain English about collages that the small judge never saw, in eight categories.

Needs the pictures that `python -m vlm prepare collage` fetches. The questions about scene s of a
split are drawn from the generator with the seed (s, 0). Answers are open, except for those to
multiple-choice questions. An answer is right if it equals the expected text, ignoring case,
surrounding white space and a full stop.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from eval.samples import Benchmark, DataError, Drawing, Loaded, Sample, Score
from vlm.embedded.collage import (
    COLOURS,
    SPLITS,
    THINGS,
    Pictures,
    Split,
    draw,
    make_scene,
    questions,
)
from vlm.embedded.small import CACHE


@dataclass(frozen=True)
class Collage(Benchmark):
    """Questions about collages.

    split: "val", "test", or "unseen" (a style of drawing that training never showed). scenes: the
    first scenes of the split. blind: ask without pictures. pictures: the folder of pictures, by
    default where `python -m vlm prepare collage` puts it.
    """

    split: Split = "test"
    scenes: int = 200
    blind: bool = False
    pictures: Path | None = None

    name: ClassVar[str] = "collage"
    help: ClassVar[str] = "collages of photographs, named things and signs"

    def load(self) -> Loaded:
        """Draw the questions. Raises DataError for a bad field or a missing folder."""
        if self.split not in SPLITS:
            raise DataError(f"split is {self.split!r}; expected one of {', '.join(SPLITS)}")
        if self.scenes < 1:
            raise DataError(f"scenes is {self.scenes}: expected 1 or more")
        try:
            pictures = Pictures(self.pictures or CACHE / "collage")
        except FileNotFoundError as error:
            raise DataError(str(error)) from error
        samples = [
            sample for seed in range(self.scenes) for sample in _samples(seed, self.split, pictures)
        ]
        if self.blind:
            samples = [replace(sample, media=()) for sample in samples]
        return Loaded(samples)

    def score(self, sample: Sample, text: str) -> Score:
        """Exact match, ignoring case, surrounding white space and a full stop."""
        read = text.strip().removesuffix(".")
        return Score(float(read.lower() == str(sample.answer).lower()), read)

    def chance(self, samples: Sequence[Sample]) -> float:
        """The best accuracy of one constant answer for each form of question on these samples."""
        answers: dict[str, Counter[str]] = defaultdict(Counter)
        for sample in samples:
            answers[_form(sample)][sample.answer] += 1
        return sum(max(counts.values()) for counts in answers.values()) / len(samples)


def _samples(seed: int, split: Split, pictures: Pictures) -> list[Sample]:
    scene = make_scene(seed, split, pictures)
    return [
        Sample(
            key=f"{split}-{seed:05d}-{number}",
            prompt=question.text,
            media=(Drawing(partial(_picture, seed, split, pictures)),),
            answer=question.answer,
            groups={"category": question.category},
            cluster=f"{split}-{seed:05d}",
            max_new_tokens=8,
        )
        for number, question in enumerate(questions(scene, np.random.default_rng((seed, 0))))
    ]


def _picture(seed: int, split: Split, pictures: Pictures) -> Image.Image:
    return draw(make_scene(seed, split, pictures))


def _form(sample: Sample) -> str:
    """The first line of a question, with names and colours replaced by blanks."""
    names = "|".join([*THINGS, *COLOURS])
    return re.sub(rf"\b(?:{names})\w*\b", "_", sample.prompt.partition("\n")[0])
