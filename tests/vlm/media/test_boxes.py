"""Open groups of pictures: exact frames, and reading of the tables."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.marks import later
from tests.vlm.clips import grey, write_clip
from vlm.media import read_video
from vlm.media.boxes import groups_are_closed
from vlm.media.decode import DecordVideo

READERS = pytest.mark.parametrize("reader", ["decord", "pyav"])


def sampled_greys(path: Path, reader: str) -> tuple[list[int], list[int]]:
    """Grey levels of frames sampled one at a time, and those that they should have."""
    expected, got = [], []
    for index in range(0, 97, 3):
        video = read_video(path, frames=1, start=index / 10, reader=reader)
        expected.append(grey(int(video.indices[0])))
        got.append(int(video.frames[0, -9, -9, 0]))
    return expected, got


OPEN = {"g": "7", "bf": "3", "x264_params": "open-gop=1"}


@READERS
@pytest.mark.parametrize("name", ["open.mp4", *later("open.mkv")])
def test_frames_are_exact_with_open_groups_of_pictures(
    tmp_path: Path, name: str, reader: str
) -> None:
    path = write_clip(tmp_path / name, frames=100, **OPEN)
    assert not groups_are_closed(path)
    expected, got = sampled_greys(path, reader)
    assert np.abs(np.subtract(expected, got)).max() < 4
    assert len(set(expected)) > 20


def test_decord_seeks_wrong_frames_in_open_groups_and_right_ones_in_closed(tmp_path: Path) -> None:
    """Why the tables are read; should decord get it right some day, this fails."""
    wrong = {}
    for name, params in (("open", "open-gop=1"), ("closed", "open-gop=0")):
        path = write_clip(tmp_path / f"{name}.mp4", frames=100, **{**OPEN, "x264_params": params})
        assert groups_are_closed(path) == (name == "closed")
        video = DecordVideo(str(path), None, 1, strict=False, seek=True)
        order = np.random.RandomState(0).permutation(100).tolist()
        got = [int(next(video.read([index]))[-9, -9, 0]) for index in order]
        wrong[name] = np.abs(np.subtract(got, [grey(index) for index in order])).max()
    assert wrong["closed"] < 4 < wrong["open"]


@pytest.mark.parametrize(
    ("name", "options", "closed"),
    [
        ("plain.mp4", {"bf": "0"}, True),
        ("keys.mp4", {"g": "1"}, True),
        ("closed.mov", {"g": "9", "bf": "3"}, True),
        ("hevc.mp4", {"codec": "libx265", "x265_params": "open-gop=1:keyint=9:log-level=0"}, False),
        ("closed.mkv", {}, False),
        ("one.mp4", {"frames": 1}, True),
    ],
)
def test_tables_tell_closed_groups(
    tmp_path: Path, name: str, options: dict[str, Any], closed: bool
) -> None:
    assert groups_are_closed(write_clip(tmp_path / name, **{"frames": 40, **options})) == closed


def test_mangled_tables_are_not_known_or_read(tmp_path: Path) -> None:
    """Bytes changed and files cut: an answer, never an error."""
    data = write_clip(tmp_path / "whole.mp4", frames=40, **OPEN).read_bytes()
    draw, start = random.Random(0), data.rindex(b"moov")
    path = tmp_path / "mangled.mp4"
    for number in range(500):
        broken = bytearray(data)
        for _ in range(draw.randint(1, 6)):
            broken[draw.randrange(start - 4, len(broken))] = draw.randrange(256)
        path.write_bytes(broken if number % 5 else broken[: draw.randrange(len(broken))])
        assert groups_are_closed(path) in (True, False)
    assert not groups_are_closed(tmp_path / "none.mp4")
