"""Writes questions about drawn pictures in the form of MMBench's TSV."""

from __future__ import annotations

import base64
import csv
from collections.abc import Sequence
from pathlib import Path

LETTERS = "ABCD"
HEAD = "index question hint A B C D answer category image source l2-category comment split"


def rows_of(
    start: int,
    picture: bytes,
    asked: Sequence[tuple[str, str, str, Sequence[str]]],
    split: str,
) -> list[list[object]]:
    """Rows of the questions about one picture, from the index `start` on.

    picture: a PNG file; the first row contains it, the others its index. asked: category, question,
    answer and up to four options, which hold the answer.
    """
    rows: list[list[object]] = []
    for category, question, answer, options in asked:
        letter = LETTERS[list(options).index(answer)]
        image = str(start) if rows else base64.b64encode(picture).decode()
        filled = [*options, *[""] * (len(LETTERS) - len(options))]
        index = start + len(rows)
        rows.append([index, question, "", *filled, letter, category, image])
        rows[-1] += ["drawn", category, "", split]
    return rows


def write_rows(path: Path, rows: Sequence[Sequence[object]]) -> None:
    """Write a TSV; nothing is left of an interrupted call under this name."""
    partial = path.with_name(path.name + ".part")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(HEAD.split())
        writer.writerows(rows)
    partial.replace(path)
