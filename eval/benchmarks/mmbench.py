"""MMBench (Liu et al. 2023), EN and CN, dev and test: CircularEval and vanilla accuracy.

The official TSV has the columns index, question, hint, A..D, answer, category, image, l2-category,
source and split. An image is base64, or the index of the row that contains it. CircularEval asks a
question with N options N times, with the options rotated ("rolls"). Row k of a question has the
index base + k * 1,000,000, or its base in `g_index`. Rolls that are not in the file are built.
"""

from __future__ import annotations

import base64
import binascii
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from eval.extract import Judge, choice
from eval.files import need, read_tsv
from eval.samples import Benchmark, DataError, Loaded, Picture, Problem, Sample, Score, Scored, Unit
from eval.xlsx import write_xlsx

LETTERS = "ABCDE"
ROLL = 1_000_000
STYLES = {
    # The prompt with hint, question and options, and what follows the options.
    "llava": (
        "{hint}\n{question}\n{options}",
        "\nAnswer with the option's letter from the given choices directly.",
    ),
    "llava_cn": ("{hint}\n{question}\n{options}", "\n请直接回答选项字母。"),
    "vlmevalkit": (
        "Hint: {hint}\nQuestion: {question}\nOptions:\n{options}\n",
        "Please select the correct answer from the options above. \n",
    ),
    "lmms": (
        "{hint} {question} There are several options:\n{options}",
        "\n\nAnswer with the option's letter from the given choices directly.",
    ),
    "question": ("{hint}\n{question}", ""),
}
_COLUMNS = ("index", "question", "A", "B", "image")


@dataclass(frozen=True)
class MMBench(Benchmark):
    """data: the TSV. circular: ask all rolls. style: the form of the prompt, one of `STYLES`.
    "question" shows no options, for models that answer in words; only option texts are read.
    judge: a function that is asked if the rules read nothing.
    """

    data: Path
    circular: bool = True
    style: str = "llava"
    judge: Judge | None = field(default=None, repr=False)

    name: ClassVar[str] = "mmbench"
    help: ClassVar[str] = "MMBench TSV, EN or CN, dev or test"

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise DataError(f"style is {self.style!r}; expected one of {', '.join(STYLES)}")

    def load(self) -> Loaded:
        """Read the questions. A question with a bad roll is left out entirely."""
        head, numbered = read_tsv(self.data)
        need(head, _COLUMNS, self.data)
        rows, bad = _unique(list(numbered))
        pictures = _Pictures({index: row["image"] for index, (_, row) in rows.items()})
        groups: dict[int, list[Sample]] = defaultdict(list)
        hidden = not any(row.get("answer") for _, row in rows.values())
        spoiled: set[int] = set()
        for index, (number, row) in rows.items():
            base = index % ROLL
            try:
                base = int(row["g_index"]) if row.get("g_index") else base
                groups[base].append(self._sample(index, base, row, pictures, hidden))
            except ValueError as error:
                bad.append(Problem(f"row {number} (index {index})", str(error)))
                spoiled.add(base)
        rolled = any(index >= ROLL for index in rows)
        samples: list[Sample] = []
        for base, group in groups.items():
            if base in spoiled:
                continue
            try:
                samples += self._rolls(base, group, rolled)
            except ValueError as error:
                bad.append(Problem(f"index {base}", str(error)))
        return Loaded(samples, bad)

    def _sample(
        self, index: int, base: int, row: dict[str, str], pictures: _Pictures, hidden: bool
    ) -> Sample:
        if None in row or None in row.values():
            raise ValueError("the number of fields differs from that of the head")
        options = {letter: row[letter] for letter in LETTERS if row.get(letter)}
        answer = (row.get("answer") or "").strip() or None
        if list(options) != list(LETTERS[: len(options)]) or len(options) < 2:
            raise ValueError(f"options {', '.join(options) or 'none'}: expected A, B, ... in order")
        if answer is None and not hidden:
            raise ValueError("no answer, while other rows have one")
        if answer is not None and answer not in options:
            raise ValueError(f"answer is {answer!r}: expected one of {', '.join(options)}")
        if not row["question"].strip():
            raise ValueError("no question")
        names = ("l2-category", "category", "split")
        return Sample(
            key=str(index),
            prompt=self._prompt(row, options),
            media=(Picture(pictures[index]),),
            cluster=str(pictures.holder(index) % ROLL),
            answer=answer,
            options=options,
            spoken=self._spoken(options),
            groups={name: row[name] for name in names if row.get(name)},
            about={**{k: v for k, v in row.items() if k != "image"}, "base": base},
        )

    def _spoken(self, options: dict[str, str]) -> tuple[str, ...]:
        return tuple(options.values()) if self.style == "question" else ()

    def _prompt(self, row: dict[str, str], options: dict[str, str]) -> str:
        form, suffix = STYLES[self.style]
        hint = (row.get("hint") or "").strip()
        if not hint:  # without the line, or the words, of the hint
            form = form[form.index("{hint}") + len("{hint}") + 1 :]
        lines = "\n".join(f"{letter}. {text}" for letter, text in options.items())
        return form.format(hint=hint, question=row["question"], options=lines) + suffix

    def _rolls(self, base: int, group: list[Sample], rolled: bool) -> list[Sample]:
        first = [sample for sample in group if int(sample.key) == base]
        if not first:
            raise ValueError(f"the unrotated row is missing; there are {len(group)} rotated ones")
        if not self.circular:
            return first
        count = len(first[0].options)
        if rolled or len(group) > 1:
            if len(group) != count:
                raise ValueError(f"only {len(group)} of {count} rolls are in the file")
            return group
        return [self._rolled(first[0], base, k) for k in range(count)]

    def _rolled(self, sample: Sample, base: int, k: int) -> Sample:
        letters = list(sample.options)
        texts = list(sample.options.values())
        options = dict(zip(letters, texts[k:] + texts[:k], strict=True))
        answer = sample.answer
        if answer is not None:
            answer = letters[(letters.index(answer) - k) % len(letters)]
        index = base + k * ROLL
        about = {**sample.about, **options, "index": str(index), "answer": answer}
        prompt = self._prompt(about, options)
        return replace(
            sample,
            key=str(index),
            prompt=prompt,
            options=options,
            spoken=self._spoken(options),
            answer=answer,
            about=about,
        )

    def score(self, sample: Sample, text: str) -> Score:
        """Whether the answer chooses the right option."""
        read = choice(text, sample.options, self.judge, letters=self.style != "question")
        return Score(None if sample.answer is None else float(read == sample.answer), read)

    def units(self, scored: Sequence[Scored]) -> list[Unit]:
        """A question counts as right if all its rolls are answered right."""
        groups: dict[str, list[Scored]] = defaultdict(list)
        for answer in scored:
            groups[str(answer.sample.about["base"])].append(answer)
        return [
            Unit(base, min(values), group[0].sample.cluster, group[0].sample.groups)
            for base, group in groups.items()
            if len(values := [o.score.value for o in group if o.score.value is not None])
            == len(group)
        ]

    def extra(self, scored: Sequence[Scored]) -> dict[str, float]:
        """Vanilla accuracy: over the unrotated rows."""
        plain = [
            s.score.value
            for s in scored
            if s.score.value is not None and int(s.sample.key) == s.sample.about["base"]
        ]
        return {"vanilla": sum(plain) / len(plain)} if plain and self.circular else {}

    def chance(self, samples: Sequence[Sample]) -> float | None:
        """The accuracy of the best constant letter; none is right in CircularEval."""
        if self.circular or self.style == "question" or samples[0].answer is None:
            return None
        return max(Counter(s.answer for s in samples).values()) / len(samples)

    def export(self, scored: Sequence[Scored], folder: Path) -> list[Path]:
        """Write the submission file of the evaluation server: rows with a `prediction`, as XLSX."""
        names = ["index", "question", "hint", *LETTERS, "answer", "category", "l2-category"]
        names += ["source", "split"]
        names = [name for name in names if any(name in s.sample.about for s in scored)]
        rows = [[*names, "prediction"]]
        for s in scored:
            known = {**s.sample.about, "index": int(s.sample.key)}
            rows.append([*(known.get(name) for name in names), s.text])
        return [write_xlsx(folder / "submission.xlsx", rows)]


class _Pictures:
    """The bytes of each row's picture. References are followed, and each is decoded once."""

    def __init__(self, fields: dict[int, str]) -> None:
        self.fields = fields
        self.known: dict[int, bytes] = {}

    def holder(self, index: int) -> int:
        """The index of the row that contains the picture."""
        at, seen = index, [index]
        while len(text := self.fields[at] or "") <= 64:
            if not text.strip().isdecimal():
                raise ValueError(f"image is {text!r}: expected base64 or the index of a row")
            at = int(text)
            if at not in self.fields:
                raise ValueError(f"image refers to index {at}, which is not in the file")
            if at in seen:
                raise ValueError(f"image refers to itself by {' -> '.join(map(str, seen))}")
            seen.append(at)
        return at

    def __getitem__(self, index: int) -> bytes:
        at = self.holder(index)
        if at not in self.known:
            try:
                self.known[at] = base64.b64decode(self.fields[at], validate=True)
            except binascii.Error as error:
                raise ValueError(f"image of index {at} is not base64: {error}") from error
        return self.known[at]


def _unique(
    numbered: Sequence[tuple[int, dict[str, str]]],
) -> tuple[dict[int, tuple[int, dict[str, str]]], list[Problem]]:
    seen: dict[int, list[tuple[int, dict[str, str]]]] = defaultdict(list)
    problems = []
    for number, row in numbered:
        text = row["index"] or ""
        try:
            # Files that were written by pandas contain "17.0".
            if (value := float(text)) != (index := int(value)) or index < 0:
                raise ValueError
            seen[index].append((number, row))
        except (ValueError, OverflowError):
            problems.append(Problem(f"row {number}", f"index is {text!r}: expected a number"))
    for index, rows in seen.items():
        if len(rows) > 1:
            places = ", ".join(str(number) for number, _ in rows)
            problems.append(
                Problem(f"rows {places}", f"index {index} is in the file {len(rows)} times")
            )
    return {index: rows[0] for index, rows in seen.items() if len(rows) == 1}, problems
