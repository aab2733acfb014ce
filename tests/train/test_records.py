"""Records of JSON files are located, and errors name the line of a broken file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from train.records import DataError, read_records


def write(folder: Path, text: str, name: str = "data.json") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def test_records_are_found_where_they_lie(tmp_path: Path) -> None:
    records = [{"id": n, "text": "naïve ☃ " * n} for n in range(4)]
    paths = [
        write(tmp_path, json.dumps(records), "one.json"),
        write(tmp_path, "\ufeff" + json.dumps(records, indent=2, ensure_ascii=False), "two.json"),
        write(
            tmp_path, "\n".join(json.dumps(r, ensure_ascii=False) for r in records), "three.jsonl"
        ),
    ]
    located = read_records(paths)
    assert [located[n] for n in range(len(located))] == records * 3
    assert located.where(5) == f"{paths[1]}, line 6"
    assert located.where(10) == f"{paths[2]}, line 3"
    assert located.select(np.array([11, 0]))[0] == records[3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},\n {"a": }]', "line 2, column 8: not JSON"),
        ('[{"a": 1}\n {"a": 2}]', "line 2, column 2: .*expected ',' or ']'"),
        ('[{"a": 1},\n]', "line 2, column 1: .*comma before the end"),
        ('[{"a": 1}', "expected ',' or ']'"),
        ('[{"a": 1}] x', "text after the end"),
        ('{"a": 1}\n{"a": 2', "line 2, column 8: not JSON"),
        ('{"a": 1}\n3\n', "line 2: expected an object, got int"),
        ('[{"a": 1},\n [2]]', "line 2: expected an object, got list"),
        ("", "is empty"),
        ("[]", "holds no samples"),
    ],
)
def test_wrong_json_is_named_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_records([write(tmp_path, text)])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_records([tmp_path / "none.json"])
    (tmp_path / "latin.json").write_bytes(b'[\n{"a": "\xe9"}]')
    with pytest.raises(DataError, match="line 2: not UTF-8"):
        read_records([tmp_path / "latin.json"])
