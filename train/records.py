"""Records of JSON and JSON-lines files, located once and read when they are requested.

Ours: the json module does not tell where a record is in its file, and data sets can be larger than
memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


class DataError(ValueError):
    """A data file cannot be used. The message names the file and the line."""


@dataclass
class Records:
    """JSON objects in files. Only their locations are held in memory.

    Attributes:
        paths: the files.
        places: (n, 4) int64: file number, first byte, last byte + 1, and line of each record.
    """

    paths: list[Path]
    places: np.ndarray
    _files: dict[int, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Any:
        number, first, last, _ = self.places[index].tolist()
        if number not in self._files:
            self._files[number] = self.paths[number].open("rb")
        self._files[number].seek(first)
        return json.loads(self._files[number].read(last - first))

    def where(self, index: int) -> str:
        """The file and line of a record, for messages."""
        number, _, _, line = self.places[index].tolist()
        return f"{self.paths[number]}, line {line}"

    def select(self, indices: np.ndarray) -> Records:
        """A subset, in this order."""
        return Records(self.paths, self.places[indices])

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes open the files themselves, as a shared handle would share its offset.
        return self.__dict__ | {"_files": {}}


def read_records(paths: list[Path]) -> Records:
    """Locate the records of JSON files (a list of objects) and JSON-lines files.

    Raises DataError if a file does not exist, is empty, is not UTF-8 or not JSON (with line and
    column), or holds anything but objects.
    """
    places: list[tuple[int, int, int, int]] = []
    for number, path in enumerate(paths):
        places += [(number, *place) for place in _places(path)]
    return Records(paths, np.array(places, dtype=np.int64).reshape(-1, 4))


def _places(path: Path) -> list[tuple[int, int, int]]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    mark = 3 * raw.startswith(b"\xef\xbb\xbf")
    try:
        text = raw[mark:].decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start + mark].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not UTF-8 ({error.reason})") from error
    if not text.strip():
        raise DataError(f"{path} is empty: expected a list of samples, or one sample a line")
    spans = _listed(path, text) if text.lstrip().startswith("[") else _lines(path, text)
    places, seen, offset, line = [], 0, mark, 1
    for first, last in spans:
        gap, body = text[seen:first], text[first:last]
        offset, line = offset + len(gap.encode()), line + gap.count("\n")
        end = offset + len(body.encode())
        places.append((offset, end, line))
        offset, line, seen = end, line + body.count("\n"), last
    if not places:
        raise DataError(f"{path} holds no samples")
    return places


def _lines(path: Path, text: str) -> Iterator[tuple[int, int]]:
    at = 0
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                where = f"{path}, line {number}, column {error.colno}"
                raise DataError(f"{where}: not JSON ({error.msg})") from error
            _check(path, number, record)
            yield at, at + len(line)
        at += len(line) + 1


def _listed(path: Path, text: str) -> Iterator[tuple[int, int]]:
    """Spans of the objects of one JSON list."""
    decoder, at = json.JSONDecoder(), text.index("[") + 1

    def fail(place: int, reason: str) -> DataError:
        line = text.count("\n", 0, place) + 1
        column = place - text.rfind("\n", 0, place)
        return DataError(f"{path}, line {line}, column {column}: not JSON ({reason})")

    def skip(place: int) -> int:
        while place < len(text) and text[place] in " \t\r\n":
            place += 1
        return place

    at = skip(at)
    while text[at : at + 1] != "]":
        try:
            record, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise fail(error.pos, error.msg) from error
        if not isinstance(record, dict):
            _check(path, text.count("\n", 0, at) + 1, record)
        yield at, end
        at = skip(end)
        if text[at : at + 1] == ",":
            at = skip(at + 1)
            if text[at : at + 1] == "]":
                raise fail(at, "a comma before the end of the list")
        elif text[at : at + 1] != "]":
            raise fail(at, "expected ',' or ']' after a sample")
    if text[at + 1 :].strip():
        raise fail(skip(at + 1), "text after the end of the list")


def _check(path: Path, line: int, record: Any) -> None:
    if not isinstance(record, dict):
        kind = type(record).__name__
        raise DataError(f"{path}, line {line}: expected an object, got {kind}")
