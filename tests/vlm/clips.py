"""Small real video files, written with PyAV: frame i is a grey of its own, so that it can be told
which frame came back. The upper left quarter is white, so that a turn shows."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

WIDTH, HEIGHT = 128, 96


def grey(index: int) -> int:
    return 20 + index * 8 % 200


def write_clip(
    path: Path,
    frames: int = 20,
    rate: int = 10,
    codec: str = "libx264",
    times: Sequence[float] | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    sound: bool = False,
    **options: str,
) -> Path:
    """`times` in seconds make a variable frame rate; `options` are the encoder's, with _ for -."""
    av = pytest.importorskip("av")
    width, height = size
    options = {name.replace("_", "-"): value for name, value in options.items()}
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        base = Fraction(1, 1000) if times is not None else Fraction(1, rate)
        stream.codec_context.time_base = base
        track = file.add_stream("aac", rate=44100, layout="mono") if sound else None
        for index in range(frames):
            pixels = np.full((height, width, 3), grey(index), np.uint8)
            pixels[: height // 2, : width // 2] = 255
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts = index if times is None else round(times[index] * 1000)
            frame.time_base = base
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        if track is not None:
            _hush(av, file, track)
    return path


def write_sound(path: Path) -> Path:
    """One second of silence and no picture."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as file:
        _hush(av, file, file.add_stream("aac", rate=44100, layout="mono"))
    return path


def _hush(av: object, file: object, track: object) -> None:
    silence = np.zeros((1, 44100), np.float32)
    frame = av.AudioFrame.from_ndarray(silence, "fltp", "mono")  # type: ignore[attr-defined]
    frame.rate = 44100
    file.mux(track.encode(frame))  # type: ignore[attr-defined]
    file.mux(track.encode())  # type: ignore[attr-defined]


def turn(path: Path, degrees: int) -> None:
    """Writes a display matrix into an mp4: to be shown turned clockwise by 90, 180 or 270."""
    unit = 1 << 16
    a, b, c, d = {90: (0, unit, -unit, 0), 180: (-unit, 0, 0, -unit), 270: (0, -unit, unit, 0)}[
        degrees
    ]
    data = bytearray(path.read_bytes())
    box = data.index(b"tkhd")
    assert data[box + 4] == 0  # version 0: the matrix stands 40 bytes into the box's body
    matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    data[box + 44 : box + 80] = matrix
    path.write_bytes(data)


def shown(frames: np.ndarray) -> list[int]:
    """Which frame each picture is, by the grey of its darkest quarter (for fewer than 25)."""
    height, width = frames.shape[1:3]
    corners = frames[:, [height // 4, -height // 4]][:, :, [width // 4, -width // 4], 1]
    levels = np.array([grey(i) for i in range(25)])
    darkest = corners.reshape(len(frames), 4).astype(int).min(1)
    return [int(np.abs(levels - level).argmin()) for level in darkest]
