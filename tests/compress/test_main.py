"""`python -m compress`: what it writes, and the one line that a wrong input gets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress.__main__ import main


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def test_draws_a_sheet(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "sheet.png"
    assert main([str(photo), "--budget", "48", "--method", "duet,random", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    methods = [line.split()[:2] for line in printed.splitlines()[1:4]]
    assert methods == [["dense", "144.00"], ["duet", "47.75"], ["random", "48.00"]]
    assert Image.open(out).size == (2 * 346 + 10, 58 + 224 + 40 + 20)


def test_one_method_is_reported_layer_by_layer(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(photo), "--budget", "1/3", "--out", str(tmp_path / "one.png")]) == 0
    assert "77 x 1, 38 x 3" in capsys.readouterr().out
    assert Image.open(tmp_path / "one.png").width == 3 * 346 + 10


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--budget", "0"], "budget"),
        (["--budget", "145"], "1..144"),
        (["--method", "duets"], "expected one of cascade"),
        (["--model", "./nowhere"], "nowhere"),
    ],
)
def test_one_clear_line(
    photo: Path, tmp_path: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sheet.png"
    assert main([str(photo), "--out", str(out), *options]) == 1
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error and not out.exists()


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n cut"])
def test_unreadable_media(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    assert main([str(path)]) == 1
    error = capsys.readouterr().err
    assert "broken.png" in error and error.startswith("MediaError")
