"""ScienceQA (Lu et al. 2022): multiple-choice questions, only those with a picture (IMG).

`data` is the official problems.json: id -> {question, choices, answer, hint, image, split, ...};
Pictures are <id>/image.png or <split>/<id>/image.png in `media`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from eval.extract import Judge, choice
from eval.files import folder, media_file, need, read_json
from eval.samples import Benchmark, DataError, Loaded, Picture, Sample, Score, collect

LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class ScienceQA(Benchmark):
    """data, media: see the module. split: "test", "val", "minival", ..., as in the file."""

    data: Path
    media: Path | None = None
    split: str = "test"
    judge: Judge | None = field(default=None, repr=False)

    name: ClassVar[str] = "scienceqa"
    help: ClassVar[str] = "ScienceQA problems.json, with the folder of images"

    def load(self) -> Loaded:
        """Read the questions of the split with a picture."""
        media = folder(self.media, "--media", "<id>/image.png")
        rows = read_json(self.data)
        if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
            raise DataError(f"{self.data}: expected an object: id -> question")
        for row in list(rows.values())[:1]:
            need(row, ("question", "choices", "answer", "image", "split"), self.data)
        splits = sorted({str(row.get("split")) for row in rows.values()})
        if self.split not in splits:
            raise DataError(f"--split: no {self.split!r} in {self.data}; found {', '.join(splits)}")
        named = [
            (f"question {key}", (key, row))
            for key, row in rows.items()
            if row.get("split") == self.split and row.get("image")
        ]
        return collect(named, lambda pair: self._sample(*pair, media))

    def _sample(self, key: str, row: dict[str, Any], media: Path) -> Sample:
        texts, answer = row["choices"], row["answer"]
        if not 2 <= len(texts) <= len(LETTERS):
            raise ValueError(f"{len(texts)} choices: expected 2 to {len(LETTERS)}")
        if not isinstance(answer, int) or not 0 <= answer < len(texts):
            raise ValueError(f"answer is {answer!r}: expected 0 to {len(texts) - 1}")
        options = dict(zip(LETTERS, map(str, texts), strict=False))
        context = f"Context: {row['hint']}\n" if row.get("hint") else ""
        lines = "\n".join(f"{letter}. {text}" for letter, text in options.items())
        image = str(row["image"])
        places = [f"{key}/{image}", f"{self.split}/{key}/{image}"]
        return Sample(
            key=key,
            prompt=f"{context}{row['question']}\n{lines}\n"
            "Answer with the option's letter from the given choices directly.",
            media=(Picture(media_file(media, places)),),
            answer=LETTERS[answer],
            options=options,
            groups={name: row[name] for name in ("subject", "grade") if row.get(name)},
        )

    def score(self, sample: Sample, text: str) -> Score:
        """Whether the answer chooses the right option."""
        read = choice(text, sample.options, self.judge)
        return Score(float(read == sample.answer), read)
