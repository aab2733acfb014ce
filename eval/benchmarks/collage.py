"""Questions in plain English about collages that the small judge never saw, in eight categories.

Needs the pictures that `python -m vlm prepare collage` fetches. The questions about scene s of a
split are drawn from the generator with the seed (s, 0). Answers are open, except for those to
multiple-choice questions. An answer is right if it equals the expected text, ignoring case,
surrounding white space and a full stop. Two further kinds have switches of their own: captions, and
each question once more after the one before it.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image

from eval.samples import Benchmark, DataError, Drawing, Loaded, Sample, Score
from vlm.embedded.collage import (
    COLOURS,
    SPLITS,
    THINGS,
    Pictures,
    Split,
    caption,
    draw,
    make_scene,
    named,
    questions,
)
from vlm.embedded.collage.files import CAPTIONS
from vlm.embedded.small import CACHE


@dataclass(frozen=True)
class Collage(Benchmark):
    """Questions about collages.

    split: "val", "test", or "unseen" (a style of drawing that training never showed). scenes: the
    first scenes of the split. blind: ask without pictures. pictures: the folder of pictures, by
    default where `python -m vlm prepare collage` puts it. kind: "questions"; "turns" for each
    question but the first of a picture after the one before it, which the model answers too;
    "captions" for a description of each picture, scored by the F1 of the names of things.
    """

    split: Split = "test"
    scenes: int = 200
    blind: bool = False
    pictures: Path | None = None
    kind: Literal["questions", "turns", "captions"] = "questions"

    name: ClassVar[str] = "collage"
    help: ClassVar[str] = "collages of photographs, named things and signs"

    def load(self) -> Loaded:
        """Draw the questions. Raises DataError for a bad field or a missing folder."""
        if self.split not in SPLITS:
            raise DataError(f"split is {self.split!r}; expected one of {', '.join(SPLITS)}")
        if self.scenes < 1:
            raise DataError(f"scenes is {self.scenes}: expected 1 or more")
        if self.kind not in FORMS:
            raise DataError(f"kind is {self.kind!r}; expected one of {', '.join(FORMS)}")
        try:
            pictures = Pictures(self.pictures or CACHE / "collage")
        except FileNotFoundError as error:
            raise DataError(str(error)) from error
        samples = [
            sample
            for seed in range(self.scenes)
            for sample in FORMS[self.kind](seed, self.split, pictures)
        ]
        if self.blind:
            samples = [replace(sample, media=()) for sample in samples]
        return Loaded(samples)

    def score(self, sample: Sample, text: str) -> Score:
        """Exact match, ignoring case, surrounding white space and a full stop; F1 of a caption."""
        if self.kind == "captions":
            said, shown = named(text), named(sample.answer)
            found = 2 * len(said & shown) / (len(said) + len(shown))
            return Score(found, ", ".join(sorted(said)))
        read = text.strip().removesuffix(".")
        return Score(float(read.lower() == str(sample.answer).lower()), read)

    def describe(self) -> dict[str, Any]:
        """The configuration; `kind` is left out where it is the usual one."""
        settings = super().describe()
        return {k: v for k, v in settings.items() if (k, v) != ("kind", "questions")}

    def chance(self, samples: Sequence[Sample]) -> float | None:
        """The best accuracy of one constant answer for each form of question on these samples.

        None for captions.
        """
        if self.kind == "captions":
            return None
        answers: dict[str, Counter[str]] = defaultdict(Counter)
        for sample in samples:
            answers[_form(sample)][sample.answer] += 1
        return sum(max(counts.values()) for counts in answers.values()) / len(samples)


def _samples(seed: int, split: Split, pictures: Pictures) -> list[Sample]:
    scene = make_scene(seed, split, pictures)
    shown = Drawing(partial(_picture, seed, split, pictures))  # one, so that it is drawn once
    return [
        Sample(
            key=f"{split}-{seed:05d}-{number}",
            prompt=question.text,
            media=(shown,),
            answer=question.answer,
            groups={"category": question.category},
            cluster=f"{split}-{seed:05d}",
            max_new_tokens=8,
        )
        for number, question in enumerate(questions(scene, np.random.default_rng((seed, 0))))
    ]


def _turns(seed: int, split: Split, pictures: Pictures) -> list[Sample]:
    alone = _samples(seed, split, pictures)
    return [replace(b, earlier=(a.prompt,)) for a, b in itertools.pairwise(alone)]


def _captions(seed: int, split: Split, pictures: Pictures) -> list[Sample]:
    scene = make_scene(seed, split, pictures)
    asked = caption(scene, np.random.default_rng((seed, 0, CAPTIONS)))
    return [
        Sample(
            key=f"{split}-{seed:05d}-caption",
            prompt=asked.text,
            media=(Drawing(partial(_picture, seed, split, pictures)),),
            answer=asked.answer,
            groups={"category": asked.category},
            cluster=f"{split}-{seed:05d}",
            max_new_tokens=64,
        )
    ]


FORMS = {"questions": _samples, "turns": _turns, "captions": _captions}


def _picture(seed: int, split: Split, pictures: Pictures) -> Image.Image:
    return draw(make_scene(seed, split, pictures))


def _form(sample: Sample) -> str:
    """The first line of a question, with names and colours replaced by blanks."""
    names = "|".join([*THINGS, *COLOURS])
    return re.sub(rf"\b(?:{names})\w*\b", "_", sample.prompt.partition("\n")[0])
