"""Videos as frames with their times: whole (`read_video`) or chunk by chunk (`iter_video`)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from vlm.media import boxes, decode, worker
from vlm.media.files import MediaError, existing_file, sniff
from vlm.media.sampling import TIME_SLACK, sample_indices
from vlm.media.stills import Animation, Folder

MAX_BYTES = 8 << 30
CANDIDATES = 8  # frames decoded for each frame that adaptive sampling keeps


@dataclass
class Video:
    """Frames of one video, or one chunk of them.

    Attributes:
        frames: uint8 (F, H, W, 3), RGB. `torch.from_numpy(frames)` shares their memory.
        timestamps: float64 (F,), seconds from the first frame of the video.
        indices: int64 (F,), the indices of these frames in the file.
        fps: the mean frame rate of the file, not of the sampled frames.
        duration: seconds, of the whole file.
        source: the path.
        total: the number of sampled frames, of which this may be one chunk.
    """

    frames: np.ndarray
    timestamps: np.ndarray
    indices: np.ndarray
    fps: float
    duration: float
    source: str
    total: int | None = None

    def __len__(self) -> int:
        return len(self.frames)


class FrameSource(Protocol):
    """The interface of all kinds of video; see `decode.DecordVideo` for the attributes."""

    times: np.ndarray
    duration: float
    fps: float
    shape: tuple[int, int]

    def read(self, indices: list[int]) -> Iterator[np.ndarray]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Opening:
    """How a video is opened and decoded: the options of `read_video` and `iter_video`.

    Attributes:
        short_side: frames are scaled down so that their shorter side has this many pixels.
        isolate: decode containers in a child process (see `vlm.media.worker`). FFmpeg can crash or
            hang on a damaged file, and without a child so does this process. A child takes 0.3 s
            to start, is reused as long as it works, and costs 2 ms for each frame of 720p.
        timeout: the longest time in seconds that the child may take for a frame.
        threads: decoding threads of FFmpeg.
        damaged: "raise", or "repeat" the nearest good frame in place of a damaged one.
        folder_rate: frames per second of a folder of images.
        reader: "decord", or "pyav", which needs the package `av`. PyAV also reads AV1 and MPEG
            transport streams, and is faster for a few frames of a long file whose groups of
            pictures are open (see `read_video`).
    """

    short_side: int | None = None
    isolate: bool = os.name == "posix"
    timeout: float = 60.0
    threads: int = 1
    damaged: str = "raise"
    folder_rate: float = 1.0
    reader: str = "decord"

    def __post_init__(self) -> None:
        if self.short_side is not None and self.short_side < 1:
            raise ValueError(f"short_side={self.short_side}: expected at least 1")
        if self.damaged not in ("raise", "repeat"):
            raise ValueError(f"damaged={self.damaged!r}: expected 'raise' or 'repeat'")
        if self.reader not in decode.READERS:
            raise ValueError(f"reader={self.reader!r}: expected one of {', '.join(decode.READERS)}")
        if self.threads < 1:
            raise ValueError(f"threads={self.threads}: expected at least 1")
        for name in ("timeout", "folder_rate"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value}: expected a positive number")


def read_video(
    path: str | os.PathLike[str],
    frames: int | None = None,
    fps: float | None = None,
    sampling: str = "uniform",
    max_frames: int | None = None,
    *,
    start: float = 0.0,
    end: float | None = None,
    exact_count: bool = False,
    max_bytes: int = MAX_BYTES,
    **opening: Any,
) -> Video:
    """Frames of a video file, of a folder of images, or of an animated GIF, PNG, WebP or AVIF.

    `sample_indices` chooses the frames: `frames` is a count, `fps` a rate, neither means all. A
    video with fewer frames gives all that it has, or raises MediaError with `exact_count`. Adaptive
    sampling decodes `CANDIDATES` times as many evenly spaced frames, and selects among them by the
    mean absolute change of 32 x 32 grey thumbnails.

    Time stamps are those of the container, also at a variable frame rate, counted from the first
    frame. A rotation stored in the file (display matrix) is applied. The aspect ratio of pixels is
    ignored.

    decord 0.6 reads H.264, HEVC, VP8, VP9, MPEG-4 and older codecs, not AV1. If groups
    of pictures are open (usual for HEVC), decord seeks to a frame that is 1 to 3 frames off;
    reading in order is exact. So the default only seeks in MP4 and QuickTime files whose tables say
    that their groups are closed. It decodes any other file from the start to the last frame that is
    needed, which is slow for a few frames of a long file. `reader="pyav"` seeks exactly in all of
    them, and reads AV1.

    Args:
        start, end: seconds; only frames with start <= time < end are considered.
        max_bytes: refuse frames that need more memory; `iter_video` has no such limit.
        opening: the fields of `Opening`: short_side, isolate, timeout, threads, damaged,
            folder_rate, reader.

    Raises:
        MediaError: no such file, empty, not a video, damaged, without video stream or frames
            (audio only), too large, or a decoder that crashed or made no progress.
        ValueError, TypeError: an argument.
    """
    with _opened(path, Opening(**opening)) as source:
        indices = _choose(source, path, frames, fps, sampling, max_frames, start, end, exact_count)
        height, width = source.shape
        size = len(indices) * height * width * 3
        if size > max_bytes:
            what = f"{len(indices)} frames of {width} x {height} are {size} bytes"
            hint = "use iter_video, short_side= or fewer frames"
            raise MediaError(path, f"{what}, more than max_bytes={max_bytes}: {hint}")
        return _read(source, path, indices, len(indices))


def iter_video(
    path: str | os.PathLike[str],
    chunk: int = 32,
    frames: int | None = None,
    fps: float | None = None,
    sampling: str = "uniform",
    max_frames: int | None = None,
    *,
    start: float = 0.0,
    end: float | None = None,
    **opening: Any,
) -> Iterator[Video]:
    """The frames of `read_video` in chunks of at most `chunk`, decoded when they are requested.

    Holds one chunk and the time stamps of the file (8 bytes a frame), whatever the length. A
    damaged frame raises when its chunk is reached. Arguments and errors as in `read_video`.
    """
    if isinstance(chunk, bool) or not isinstance(chunk, int):
        raise TypeError(f"chunk={chunk!r}: expected an int")
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: expected at least 1")
    with _opened(path, Opening(**opening)) as source:
        indices = _choose(source, path, frames, fps, sampling, max_frames, start, end, False)
        for first in range(0, len(indices), chunk):
            yield _read(source, path, indices[first : first + chunk], len(indices))


@contextmanager
def _opened(path: str | os.PathLike[str], opening: Opening) -> Iterator[FrameSource]:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path is a {type(path).__name__}: expected a str or a Path")
    try:
        source = _open(path, opening)
        try:
            yield source
        finally:
            source.close()
    except decode.DecodeError as error:
        raise MediaError(path, str(error)) from error


def _open(path: str | os.PathLike[str], opening: Opening) -> FrameSource:
    if os.path.isdir(path):  # noqa: PTH112  Path.is_dir raises where a name is too long
        return Folder(Path(path), opening.folder_rate, opening.short_side)
    file = existing_file(path)
    kind = sniff(file)
    if kind == "image":
        return Animation(file, opening.short_side)
    if kind is None:
        raise MediaError(path, "not a video or an image in a known format")
    request: dict[str, Any] = {
        "path": str(file),  # absolute, so that FFmpeg sees no protocol ("http:", "concat:") in it
        "short_side": opening.short_side,
        "threads": opening.threads,
        "strict": opening.damaged == "raise",
        "reader": opening.reader,
        "seek": boxes.groups_are_closed(file),
    }
    if opening.isolate:
        return worker.IsolatedVideo(request, opening.timeout)
    return decode.open_video(**request)


def _choose(
    source: FrameSource,
    path: str | os.PathLike[str],
    frames: int | None,
    fps: float | None,
    sampling: str,
    max_frames: int | None,
    start: float,
    end: float | None,
    exact_count: bool,
) -> np.ndarray:
    """Which frames of an opened video: int64 (F,)."""
    stop = math.inf if end is None else end
    if not 0 <= start < stop:
        raise ValueError(f"start={start}, end={end}: expected 0 <= start < end, in seconds")
    span = np.flatnonzero((source.times >= start - TIME_SLACK) & (source.times < stop))
    if not len(span):
        raise MediaError(path, f"no frame in {start} to {end} s; it lasts {source.duration:.3f} s")
    times, changes = source.times[span], None
    if sampling == "adaptive" and frames is not None and 0 < frames < len(span):
        span = span[sample_indices(len(span), min(CANDIDATES * frames, len(span)))]
        times, changes = source.times[span], _changes(source, span)
    picked = sample_indices(
        len(span),
        frames,
        sampling=sampling,
        fps=fps,
        times=times,
        duration=min(stop, source.duration) - float(times[0]),
        changes=changes,
        max_frames=max_frames,
    )
    if exact_count and frames is not None and len(picked) < frames:
        raise MediaError(path, f"it has {len(picked)} frames, {frames} were asked for")
    return span[picked]


def _changes(source: FrameSource, indices: np.ndarray) -> np.ndarray:
    changes, last = np.zeros(len(indices)), None
    for k, frame in enumerate(source.read(indices.tolist())):
        grey = Image.fromarray(frame).convert("L").resize((32, 32), Image.Resampling.BOX)
        thumb = np.asarray(grey, dtype=np.float64)
        if last is not None:
            changes[k] = np.abs(thumb - last).mean()
        last = thumb
    return changes


def _read(
    source: FrameSource, path: str | os.PathLike[str], indices: np.ndarray, total: int
) -> Video:
    frames = np.empty((len(indices), *source.shape, 3), dtype=np.uint8)
    for k, frame in enumerate(source.read(indices.tolist())):
        frames[k] = frame
    times = source.times[indices]
    return Video(frames, times, indices, source.fps, source.duration, os.fspath(path), total)
