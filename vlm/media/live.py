"""Frames as they come: a file played as a stream, a folder that fills, a camera."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vlm.media.files import MediaError
from vlm.media.images import read_image
from vlm.media.video import iter_video

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAMERAS = "/dev/video"
WAIT = 0.05  # seconds between two looks at a folder


def live_frames(
    path: str | os.PathLike[str], fps: float = 1.0, idle: float = 5.0, **opening: Any
) -> Iterator[tuple[np.ndarray, float]]:
    """Frames (H, W, 3) uint8 and their seconds, one by one, until the source ends.

    path: a video file; a folder, whose pictures are taken in the order of their names, each once,
        until none comes for `idle` seconds; or a camera (`/dev/video0`), which needs PyAV and ends
        when it is unplugged.
    fps: frames a second that are taken of a file or a camera; of a folder, the rate at which its
        pictures were made. opening: how a file is decoded, see `vlm.read_video`.

    Raises MediaError for what cannot be read, ValueError for a rate that is not positive.
    """
    if not fps > 0:
        raise ValueError(f"fps is {fps}: expected a positive number")
    if str(path).startswith(CAMERAS):
        return _camera(str(path), fps)
    if Path(path).is_dir():
        return _folder(Path(path), fps, idle)
    return _file(path, fps, opening)


def _file(
    path: str | os.PathLike[str], fps: float, opening: dict[str, Any]
) -> Iterator[tuple[np.ndarray, float]]:
    for piece in iter_video(path, 8, fps=fps, **opening):
        yield from zip(piece.frames, piece.timestamps.tolist(), strict=True)


def _folder(path: Path, fps: float, idle: float) -> Iterator[tuple[np.ndarray, float]]:
    seen: set[str] = set()
    last = time.monotonic()
    while True:
        names = sorted(f.name for f in path.iterdir() if f.suffix.lower() in PICTURES)
        fresh = [name for name in names if name not in seen]
        waited = time.monotonic() - last > idle
        for name in fresh:
            try:
                picture = np.asarray(read_image(path / name))
            except MediaError:
                if waited:
                    raise
                break  # it may still be written; pictures after it wait for it
            yield picture, len(seen) / fps
            seen.add(name)
            last = time.monotonic()
        if waited and not fresh:
            if not seen:
                raise MediaError(path, f"no picture came in {idle:g} s")
            return
        time.sleep(WAIT)


def _camera(path: str, fps: float) -> Iterator[tuple[np.ndarray, float]]:
    try:
        import av
    except ImportError as error:
        raise MediaError(path, "a camera needs the package av (PyAV)") from error
    try:
        with av.open(path, format="v4l2") as container:
            begin, due = None, 0.0
            for frame in container.decode(video=0):
                begin = frame.time if begin is None else begin
                seconds = float(frame.time - begin)
                if seconds >= due:
                    due = seconds + 1 / fps
                    yield frame.to_ndarray(format="rgb24"), seconds
    except (av.FFmpegError, OSError) as error:
        raise MediaError(path, f"the camera cannot be read ({error})") from error
