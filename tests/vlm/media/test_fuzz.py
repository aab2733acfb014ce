"""Damaged files are read, or refused with MediaError. The process neither dies nor hangs.

A crash of this process would end the test run; a hang in Pillow would too (there is no time-out
around it). A crash or hang of FFmpeg must arrive as MediaError through the decoder's child.
"""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.marks import later
from tests.vlm.clips import write_clip
from vlm.media import MediaError, iter_video, read_image, read_video

IMAGES = ("png", "jpeg", "gif", "webp", "tiff", "bmp", "avif", "jp2")
ANIMATIONS = ("gif", "png", "webp")
VIDEOS = (("mp4", "libx264"), ("mkv", "libx264"), ("webm", "libvpx"), ("avi", "mpeg4"))
TIMEOUT = 10.0  # seconds; a child that hangs is killed after it

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow warns of what it finds


def mangle(data: bytes, rng: random.Random) -> bytes:
    """Cut, overwritten, filled with zeros or extremes, doubled, or several of these."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.randrange(len(out))
        match rng.randrange(5):
            case 0:
                del out[max(at, 1) :]
            case 1:
                for _ in range(rng.choice([1, 4, 16, 64, 256])):
                    out[rng.randrange(len(out))] = rng.randrange(256)
            case 2:  # headers are where the sizes and offsets stand
                for _ in range(rng.choice([1, 4, 16])):
                    out[rng.randrange(min(len(out), 256))] = rng.choice([0, 1, 127, 128, 255])
            case 3:
                length = rng.choice([1, 4, 32, 512])
                out[at : at + length] = bytes([rng.choice([0, 255])]) * len(out[at : at + length])
            case 4:
                piece = out[at : at + rng.choice([4, 64, 1024])]
                out[at:at] = piece
    return bytes(out)


def image_bytes(kind: str, animated: bool = False) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (3, 24, 20, 3), dtype=np.uint8)
    frames = [Image.fromarray(array) for array in noise]
    buffer = io.BytesIO()
    more = {"save_all": True, "append_images": frames[1:]} if animated else {}
    form = {"jp2": "JPEG2000"}.get(kind, kind.upper())
    frames[0].save(buffer, form, **more)
    return buffer.getvalue()


def tally(cases: int, read: Callable[[], object], write: Callable[[], None]) -> Counter[str]:
    """How many mangled files were read and how many refused; any other error passes through."""
    counts: Counter[str] = Counter()
    for _ in range(cases):
        write()
        try:
            read()
            counts["read"] += 1
        except MediaError as error:
            assert str(error).startswith("cannot read ")
            counts["refused"] += 1
    return counts


def fuzz_images(kind: str, cases: int, seed: int) -> Counter[str]:
    rng, data, mangled = random.Random(seed), image_bytes(kind), b""

    def write() -> None:
        nonlocal mangled
        mangled = mangle(data, rng)

    def read() -> None:
        image = read_image(mangled, max_pixels=4_000_000)
        assert image.mode == "RGB"
        np.asarray(image)

    return tally(cases, read, write)


def fuzz_videos(
    path: Path, data: bytes, cases: int, seed: int, reader: str = "decord"
) -> Counter[str]:
    rng = random.Random(seed)

    def read() -> None:
        options: dict[str, Any] = {"timeout": TIMEOUT, "reader": reader}
        options["damaged"] = rng.choice(["raise", "repeat"])
        video = read_video(path, frames=rng.choice([1, 4, None]), max_bytes=1 << 28, **options)
        assert video.frames.shape[0] == len(video.timestamps)
        assert np.isfinite(video.timestamps).all()
        assert (np.diff(video.timestamps) >= 0).all()

    return tally(cases, read, lambda: _write(path, mangle(data, rng)))


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


@pytest.mark.parametrize("kind", IMAGES)
def test_mangled_images(kind: str) -> None:
    counts = fuzz_images(kind, cases=40, seed=1)
    assert counts["refused"] > 0


@pytest.mark.parametrize("kind", ANIMATIONS)
def test_mangled_animations(kind: str, tmp_path: Path) -> None:
    data = image_bytes(kind, animated=True)
    counts = fuzz_videos(tmp_path / f"a.{kind}", data, cases=20, seed=2)
    assert counts["refused"] > 0


@pytest.mark.parametrize("reader", ["decord", *later("pyav")])
@pytest.mark.parametrize(
    ("suffix", "codec"),
    [VIDEOS[0], *(pytest.param(*v, marks=pytest.mark.slow) for v in VIDEOS[1:])],
)
def test_mangled_videos(suffix: str, codec: str, reader: str, tmp_path: Path) -> None:
    path = write_clip(tmp_path / f"a.{suffix}", codec=codec, sound=suffix != "webm", g="5")
    counts = fuzz_videos(path, path.read_bytes(), cases=8, seed=3, reader=reader)
    assert counts["refused"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", IMAGES)
def test_many_mangled_images(kind: str) -> None:
    counts = fuzz_images(kind, cases=200, seed=11)
    assert counts["refused"] > 20


@pytest.mark.slow
@pytest.mark.parametrize("kind", ANIMATIONS)
def test_many_mangled_animations(kind: str, tmp_path: Path) -> None:
    data = image_bytes(kind, animated=True)
    counts = fuzz_videos(tmp_path / f"a.{kind}", data, cases=100, seed=12)
    assert counts["refused"] > 5
    assert counts["read"] > 0  # few of PNG, which has checksums


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["decord", "pyav"])
@pytest.mark.parametrize(("suffix", "codec"), VIDEOS)
def test_many_mangled_videos(suffix: str, codec: str, reader: str, tmp_path: Path) -> None:
    path = write_clip(tmp_path / f"a.{suffix}", codec=codec, sound=suffix != "webm", g="5")
    data = path.read_bytes()
    counts = fuzz_videos(path, data, cases=100, seed=13, reader=reader)
    assert min(counts["read"], counts["refused"]) > 5
    # What was left behind by a hundred bad files must not harm a good one.
    path.write_bytes(data)
    assert sum(len(chunk) for chunk in iter_video(path, chunk=7)) == 20
