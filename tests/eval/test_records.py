"""Results on disk: one writer a file, complete lines, and atomic writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.records import RecordFile, read_records, replace, write_once
from eval.samples import DataError


def test_two_processes_cannot_write_one_file(tmp_path: Path) -> None:
    first = RecordFile(tmp_path, 0)
    with pytest.raises(DataError, match="another process"):
        RecordFile(tmp_path, 0)
    first.close()
    RecordFile(tmp_path, 0).close()


def test_a_torn_last_line_is_left_out_and_cut_off(tmp_path: Path) -> None:
    file = RecordFile(tmp_path, 0)
    file.append([{"key": "a", "text": "☃"}, {"key": "b", "text": "\ud800"}])
    file.close()
    whole = file.path.read_bytes()
    file.path.write_bytes(whole + b'{"key": "c"')
    assert list(read_records(tmp_path)) == ["a", "b"]
    RecordFile(tmp_path, 0).close()
    assert file.path.read_bytes() == whole


def test_a_key_counts_once(tmp_path: Path) -> None:
    for rank in range(2):
        file = RecordFile(tmp_path, rank)
        file.append([{"key": "a", "text": str(rank)}])
        file.close()
    assert read_records(tmp_path) == {"a": {"key": "a", "text": "0"}}


def test_a_file_is_written_once_or_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.json"
    assert write_once(path, "first") and not write_once(path, "second")
    assert path.read_text() == "first"
    assert replace(path, "third").read_text() == "third"
    assert [p.name for p in path.parent.iterdir()] == ["run.json"]
