"""POPE (Li et al. 2023): is an object in the picture? Random, popular and adversarial objects.

`data` is an official coco_pope_<kind>.json (one object a line: question_id, image, text, label), or
a folder with several. Pictures are in `media`, by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from eval.extract import yes_no
from eval.files import folder, media_file, need, read_rows
from eval.samples import Benchmark, DataError, Loaded, Picture, Sample, Score, Scored, collect

KINDS = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class POPE(Benchmark):
    """data, media: see the module."""

    data: Path
    media: Path | None = None

    name: ClassVar[str] = "pope"
    help: ClassVar[str] = "POPE JSON lines, or a folder of them, with the folder of images"

    def load(self) -> Loaded:
        """Read the questions of all kinds in the file or folder."""
        media = folder(self.media, "--media", "the images that the questions name")
        files = sorted(self.data.glob("*pope*.json*")) if self.data.is_dir() else [self.data]
        if not files:
            raise DataError(f"{self.data}: no *pope*.json in this folder")
        named = []
        for path in files:
            rows = read_rows(path)
            if rows:
                need(rows[0], ("question_id", "image", "text", "label"), path)
            kind = next((kind for kind in KINDS if kind in path.stem), path.stem)
            named += [(f"{path.name}, row {n}", (kind, row)) for n, row in enumerate(rows, 1)]
        return collect(named, lambda pair: self._sample(*pair, media))

    def _sample(self, kind: str, row: dict[str, Any], media: Path) -> Sample:
        answer = str(row["label"]).strip().lower()
        if answer not in ("yes", "no"):
            raise ValueError(f"label is {row['label']!r}: expected yes or no")
        return Sample(
            key=f"{kind}-{row['question_id']}",
            prompt=f"{row['text']}\nAnswer the question using a single word or phrase.",
            media=(Picture(media_file(media, [str(row["image"])])),),
            answer=answer,
            groups={"kind": kind},
            cluster=str(row["image"]),
        )

    def score(self, sample: Sample, text: str) -> Score:
        """Whether the answer, read as yes or no, is right. Neither counts as wrong."""
        read = yes_no(text)
        return Score(float(read == sample.answer), read)

    def extra(self, scored: Sequence[Scored]) -> dict[str, float]:
        """Precision, recall and F1 of "yes", and the share of answers that say yes."""
        pairs = [(s.sample.answer == "yes", s.score.read == "yes") for s in scored if not s.error]
        hits = sum(truth and said for truth, said in pairs)
        said, true = sum(said for _, said in pairs), sum(truth for truth, _ in pairs)
        figures = {
            "precision": hits / said if said else 0.0,
            "recall": hits / true if true else 0.0,
            "F1": 2 * hits / (said + true) if said + true else 0.0,
        }
        return figures | ({"yes ratio": said / len(pairs)} if pairs else {})

    def sums(self, scored: Sequence[Scored]) -> dict[str, dict[str, float]]:
        """Right, given and true answers "yes" of each picture."""
        found: dict[str, dict[str, float]] = {}
        for s in scored:
            if s.error:
                continue
            row = found.setdefault(s.sample.cluster, dict.fromkeys(("hits", "said", "true"), 0.0))
            true, said = s.sample.answer == "yes", s.score.read == "yes"
            row["hits"] += true and said
            row["said"] += said
            row["true"] += true
        return found

    def published(self, sums: Mapping[str, Any]) -> Any:
        """F1 of "yes", in percent."""
        return 200 * sums["hits"] / (sums["said"] + sums["true"])
