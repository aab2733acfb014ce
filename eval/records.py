"""Results on disk: JSON lines that are appended during the run and survive a kill.

Each process writes its own file, `results-<rank>.jsonl`. The results are the union of all files, so
a run can be resumed with another number of processes.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.samples import DataError


class RecordFile:
    """Appends rows to a file that it locks.

    An incomplete last line, left by a kill, is removed when the file is opened.
    Raises DataError if another process is writing the file.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"results-{rank:05d}.jsonl"
        self._file = self.path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise DataError(f"{self.path} is being written by another process") from error
        whole = sum(len(line) for line in _whole_lines(self.path))
        self._file.truncate(whole)

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows. After a kill the file contains a prefix of them."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self._file.write(text.encode("utf-8", errors="backslashreplace"))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close and unlock the file."""
        self._file.close()


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """All rows of a folder by key, the first row of each. Incomplete last lines are skipped.

    Raises DataError for any other line that is not a result.
    """
    rows: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("results-*.jsonl")):
        for number, line in enumerate(_whole_lines(path), 1):
            try:
                row = json.loads(line)
                rows.setdefault(row["key"], row)
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}, line {number}: not a result ({error})") from error
    return rows


def _whole_lines(path: Path) -> list[bytes]:
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not _is_json_line(lines[-1]):
        lines.pop()
    return lines


def _is_json_line(line: bytes) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def write_once(path: Path, text: str) -> bool:
    """Create a file, unless it exists. It appears with its whole content. True if created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    finally:
        draft.unlink()
    return True


def replace(path: Path, content: str | bytes) -> Path:
    """Write a file atomically. Returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    draft.replace(path)
    return path
