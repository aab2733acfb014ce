"""TextVQA (Singh et al. 2019): short answers about text in photographs, with ten reference answers.

`data` is the official TextVQA_0.5.1_val.json (or _test, without answers). Photographs are
<image_id>.jpg or train_images/<image_id>.jpg in `media`. With `ocr`, the official Rosetta file, its
tokens are added to the prompt. Figures with and without them cannot be compared.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from eval.extract import normalise_vqa, vqa_score
from eval.files import folder, media_file, need, read_rows
from eval.records import replace
from eval.samples import Benchmark, Loaded, Picture, Sample, Score, Scored, collect

_PLACES = ("{}.jpg", "train_images/{}.jpg", "test_images/{}.jpg", "{}.png")


@dataclass(frozen=True)
class TextVQA(Benchmark):
    """data, media, ocr: see the module."""

    data: Path
    media: Path | None = None
    ocr: Path | None = None

    name: ClassVar[str] = "textvqa"
    help: ClassVar[str] = "TextVQA JSON, with the folder of images"
    metric: ClassVar[str] = "VQA accuracy"

    def load(self) -> Loaded:
        """Read the questions."""
        media = folder(self.media, "--media", "<image_id>.jpg")
        rows = read_rows(self.data)
        if rows:
            need(rows[0], ("question", "question_id", "image_id"), self.data)
        tokens = self._tokens()
        named = ((f"row {n} ({row.get('question_id')})", row) for n, row in enumerate(rows, 1))
        return collect(named, lambda row: self._sample(row, media, tokens))

    def _tokens(self) -> dict[str, list[str]] | None:
        if self.ocr is None:
            return None
        rows = read_rows(self.ocr)
        if rows:
            need(rows[0], ("image_id", "ocr_tokens"), self.ocr)
        return {row["image_id"]: row["ocr_tokens"] for row in rows}

    def _sample(
        self, row: dict[str, Any], media: Path, tokens: dict[str, list[str]] | None
    ) -> Sample:
        answers = row.get("answers")
        if answers is not None and (not isinstance(answers, list) or len(answers) < 2):
            raise ValueError(f"answers are {answers!r}: expected a list, of ten people")
        image = row["image_id"]
        prompt = str(row["question"]).capitalize()
        if tokens is not None:
            if image not in tokens:
                raise ValueError(f"image {image} has no OCR tokens")
            prompt += f"\nReference OCR token: {', '.join(tokens[image])}"
        return Sample(
            key=str(row["question_id"]),
            prompt=f"{prompt}\nAnswer the question using a single word or phrase.",
            media=(Picture(media_file(media, [place.format(image) for place in _PLACES])),),
            answer=answers,
            cluster=str(image),
            about={"question_id": row["question_id"]},
        )

    def score(self, sample: Sample, text: str) -> Score:
        """VQA accuracy: an answer that three people gave is fully right."""
        value = None if sample.answer is None else vqa_score(text, sample.answer)
        return Score(value, normalise_vqa(text))

    def export(self, scored: Sequence[Scored], folder: Path) -> list[Path]:
        """Write the submission file of the evaluation server."""
        rows = [
            {"question_id": s.sample.about["question_id"], "answer": normalise_vqa(s.text)}
            for s in scored
        ]
        return [replace(folder / "submission.json", json.dumps(rows) + "\n")]
