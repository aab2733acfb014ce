"""GQA (Hudson and Manning 2019): one-word answers and exact match, usually testdev_balanced.

`data` is the official testdev_balanced_questions.json: question id -> {imageId, question, answer,
types}. Pictures are <imageId>.jpg in `media`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from eval.extract import normalise_words
from eval.files import folder, media_file, need, read_json
from eval.samples import Benchmark, DataError, Loaded, Picture, Sample, Score, collect


@dataclass(frozen=True)
class GQA(Benchmark):
    """data, media: see the module."""

    data: Path
    media: Path | None = None

    name: ClassVar[str] = "gqa"
    help: ClassVar[str] = "GQA questions JSON, with the folder of images"

    def load(self) -> Loaded:
        """Read the questions."""
        media = folder(self.media, "--media", "<imageId>.jpg")
        rows = read_json(self.data)
        if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
            raise DataError(f"{self.data}: expected an object: question id -> question")
        for row in list(rows.values())[:1]:
            need(row, ("imageId", "question", "answer"), self.data)
        named = ((f"question {key}", (key, row)) for key, row in rows.items())
        return collect(named, lambda pair: self._sample(*pair, media))

    def _sample(self, key: str, row: dict[str, Any], media: Path) -> Sample:
        types = row.get("types") or {}
        image = str(row["imageId"])
        return Sample(
            key=key,
            prompt=f"{row['question']}\nAnswer the question using a single word or phrase.",
            media=(Picture(media_file(media, [f"{image}.jpg", f"{image}.png"])),),
            answer=str(row["answer"]),
            groups={name: types[name] for name in ("structural", "semantic") if types.get(name)},
            cluster=image,
        )

    def score(self, sample: Sample, text: str) -> Score:
        """Exact match, ignoring case and punctuation."""
        read = normalise_words(text)
        return Score(float(read == normalise_words(sample.answer)), read)
