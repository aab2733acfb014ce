"""SubRip files: texts without tags, and the texts on screen at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.samples import DataError
from eval.subtitles import Subtitle, read_srt, shown_at
from tests.eval.fixtures import SRT


def test_srt(tmp_path: Path) -> None:
    path = tmp_path / "a.srt"
    path.write_text("\ufeff" + SRT.replace("\n", "\r\n"), newline="")
    assert read_srt(path) == [
        Subtitle(0.0, 0.55, "The first words"),
        Subtitle(0.55, 0.75, "never seen"),
        Subtitle(1.0, 3.0, "Two lines of words"),
    ]
    assert shown_at(read_srt(path), [0.55, 0.6, 3.0]) == ["never seen"]
    path.write_text("1\nno times\nwords\n")
    with pytest.raises(DataError, match="no times in '1'"):
        read_srt(path)
