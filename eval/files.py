"""Reading files of benchmarks: tables become dictionaries, faults become clear errors."""

from __future__ import annotations

import csv
import difflib
import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from eval.samples import DataError
from vlm.media import inside

_FIELD_LIMIT = 1 << 30  # a picture in base64 is one field


def read_tsv(path: Path) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """Columns and numbered rows (1 is the first below the head) of a tab-separated file.

    Rows with too few or too many fields have None as a value or as a key. Raises DataError if the
    file cannot be read or is not a tab-separated file in UTF-8. Not read with pandas, which takes
    an option "None" or "N/A" for a missing value.
    """
    try:
        file = existing(path).open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    before = csv.field_size_limit(_FIELD_LIMIT)
    with file:
        try:
            rows = list(csv.reader(file, delimiter="\t"))
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path} is not a tab-separated file in UTF-8: {error}") from error
        finally:
            csv.field_size_limit(before)
    if not rows:
        raise DataError(f"{path} is empty: expected a line of column names")
    head, *body = rows
    return head, ((number, dict(_padded(head, row))) for number, row in enumerate(body, 1) if row)


def _padded(head: list[str], row: list[str]) -> Iterator[tuple[Any, Any]]:
    for at in range(max(len(head), len(row))):
        yield (head[at] if at < len(head) else None, row[at] if at < len(row) else None)


def read_json(path: Path) -> Any:
    """The value of a JSON file, or the list of values of a file with one JSON value a line."""
    try:
        text = existing(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} as UTF-8: {error}") from error
    try:
        return json.loads(text)
    except ValueError as error:
        whole = error
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            if number == 1:
                raise DataError(f"{path} is not JSON: {whole}") from error
            raise DataError(f"{path}, line {number} is not JSON: {error}") from error
    return rows


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """The rows of a parquet file. Needs the package pyarrow. Raises DataError."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{path}: reading parquet needs the package pyarrow") from error
    try:
        return pyarrow.parquet.read_table(existing(path)).to_pylist()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a parquet file: {error}") from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    """A list of objects from a parquet file, a JSON file or JSON lines. Raises DataError."""
    rows = read_parquet(path) if path.suffix == ".parquet" else read_json(path)
    if isinstance(rows, dict):  # a file of one line, or {"data": [...]}
        rows = rows.get("data", [rows])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: expected a list of objects")
    return rows


def existing(path: Path) -> Path:
    """The path of a file. Raises DataError if there is none."""
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {what}")
    return path


def need(found: Collection[str], wanted: Collection[str], where: object) -> None:
    """Raise DataError unless all wanted columns exist. The message suggests renamed ones."""
    missing = [name for name in wanted if name not in found]
    if not missing:
        return
    guesses = [difflib.get_close_matches(name, [str(f) for f in found], 1, 0.6) for name in missing]
    parts = [
        f"{name!r}" + (f" (is it {guess[0]!r}?)" if guess else "")
        for name, guess in zip(missing, guesses, strict=True)
    ]
    shown = ", ".join(map(str, found)) or "none"
    raise DataError(f"{where}: no column {', '.join(parts)}; found: {shown}")


def media_file(folder: Path, names: Collection[str]) -> Path:
    """The first of `names` that is a file in `folder`. Raises ValueError if there is none."""
    for name in names:
        path = inside(folder, name)
        if path.is_file():
            return path
    tried = ", ".join(names)
    raise ValueError(f"no file {tried} in {os.fspath(folder)}")


def folder(path: Path | None, option: str, what: str) -> Path:
    """The path of a folder. Raises a DataError that names the option if there is none."""
    if path is None:
        raise DataError(f"{option} is missing: expected the folder with {what}")
    if not path.is_dir():
        raise DataError(f"{option}: there is no folder {path}; expected the folder with {what}")
    return path
