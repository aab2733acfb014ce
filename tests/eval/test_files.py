"""Errors name the file that cannot be used, and the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.benchmarks import GQA, POPE, TextVQA
from eval.samples import DataError
from tests.eval import fixtures


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    data, media = fixtures.gqa(tmp_path)
    (tmp_path / "bad.json").write_text('{"a": 1}\n{"b": \n')
    for benchmark, what in (
        (GQA(tmp_path / "bad.json", media), "line 2 is not JSON"),
        (GQA(tmp_path / "absent.json", media), "does not exist"),
        (GQA(data, tmp_path / "absent"), "there is no folder"),
        (GQA(tmp_path, media), "is a folder, not a file"),
        (POPE(media, media), r"no \*pope\*\.json"),
        (TextVQA(data, media), "no column 'question', 'question_id', 'image_id'"),
    ):
        with pytest.raises(DataError, match=what):
            benchmark.load()
