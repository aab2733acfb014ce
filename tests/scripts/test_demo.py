"""The demo, end to end, as `make demo` runs it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from scripts.demo import main


@pytest.mark.slow
def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo.png"
    assert main(["--frames", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("tokens a layer, reduced") == 2 and "ms to the first token" in printed
    counts = next(line for line in printed.splitlines() if line.startswith("right "))
    dense, third, ninth = map(int, re.findall(r"(\d+) of 12", counts))
    assert dense >= 9 and third >= 6 and ninth >= 0
    assert Image.open(out).width > 1000


def test_media_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "clip.mp4"
    broken.write_bytes(b"\0" * 100)
    assert main(["--video", str(broken), "--out", str(tmp_path / "x.png")]) == 1
    assert "clip.mp4" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()
