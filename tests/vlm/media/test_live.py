"""Frames as they come."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.vlm.clips import write_clip
from vlm.media.files import MediaError
from vlm.media.live import live_frames


def test_a_file(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 20, rate=10)
    found = list(live_frames(path, fps=5))
    assert [round(seconds, 1) for _, seconds in found] == [round(0.2 * n, 1) for n in range(10)]
    assert found[0][0].dtype == np.uint8
    assert found[0][0].ndim == 3


def test_a_folder_that_fills(tmp_path: Path) -> None:
    def picture(number: int) -> None:
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number:03}.png")

    def fill() -> None:
        for number in (2, 3):
            time.sleep(0.1)
            (tmp_path / f"{number:03}.png").write_bytes(b"half of it")
            time.sleep(0.1)
            picture(number)

    picture(1)
    thread = threading.Thread(target=fill)
    thread.start()
    found = list(live_frames(tmp_path, fps=2, idle=0.6))
    thread.join()
    assert [(int(frame[0, 0, 0]), seconds) for frame, seconds in found] == [
        (1, 0.0),
        (2, 0.5),
        (3, 1.0),
    ]


def test_what_cannot_be_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MediaError, match="no picture came"):
        list(live_frames(tmp_path, idle=0.05))
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(MediaError, match=r"1\.png"):
        list(live_frames(tmp_path, idle=0.05))
    with pytest.raises(MediaError, match="none"):
        list(live_frames(tmp_path / "none.mp4"))
    with pytest.raises(ValueError, match="fps is 0"):
        live_frames(tmp_path, fps=0)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MediaError, match="needs the package av"):
        list(live_frames("/dev/video99"))
