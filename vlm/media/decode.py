"""The video decoders, and the process that they run in. Imports numpy and the chosen decoder.

They use FFmpeg, which can crash, hang or allocate all memory on a damaged file. Python cannot catch
any of these. So `vlm.media.worker` starts this file as a program of its own and communicates
through pipes. Messages to the parent are JSON and raw bytes, never pickle, so a hostile file that
takes over the decoder cannot run code in the parent.

Only `open_video` knows the readers. A new reader must have the attributes and methods of
`DecordVideo`.
"""

from __future__ import annotations

import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

import numpy as np

MEMORY_LIMIT = 8 << 30  # bytes of address space of the child; a broken header may request more
DAMAGED = "damaged frames (damaged='repeat' shows their neighbours instead)"


class DecodeError(Exception):
    """The reason, in words, why a video cannot be decoded."""


class DecordVideo:
    """One video file.

    seek: whether the file's groups of pictures are known to be closed, so that seeking is exact.
        Otherwise the file is read in order, up to the last frame that is needed.

    Attributes:
        times: seconds from the start of the stream, float64 (N,), increasing. decord keeps them
            as float32, exact to 0.3 ms at one hour. Frames of containers without usable time stamps
            (raw MPEG, AVI with B-frames) get index / average rate.
        duration: seconds from the first frame to the end of the last.
        fps: mean frame rate.
        shape: (height, width) of the frames that `read` returns.
    """

    def __init__(
        self, path: str, short_side: int | None, threads: int, strict: bool, seek: bool = False
    ) -> None:
        import decord

        # Any fraction above 0 makes the first frame that was replaced by its neighbour an error.
        options = {"num_threads": threads, "fault_tol": 1e-9 if strict else -1}
        self._open = lambda **size: decord.VideoReader(path, **options, **size)
        self._video = self._open()
        height, width = self._video.next().shape[:2]
        self.shape = scaled_size(height, width, short_side)
        self._size: dict[str, int] = {}
        if self.shape != (height, width):
            self._size = {"height": self.shape[0], "width": self.shape[1]}
        self.times, self.duration, known = self._clock()
        self._seekable = known and seek
        if self._size or not self._seekable:
            self._rewind()
        self.fps = len(self.times) / self.duration if self.duration > 0 else 0.0

    def read(self, indices: list[int]) -> Iterator[np.ndarray]:
        """Frames at increasing indices, uint8 (height, width, 3), RGB, display matrix applied."""
        for index in indices:
            if self._seekable:
                yield self._video.get_batch([index]).asnumpy()[0]
                continue
            if index < self._next:
                self._rewind()
            while self._next <= index:
                frame = self._video.next()
                self._next += 1
            yield frame.asnumpy()

    def close(self) -> None:
        self._video = None

    def _rewind(self) -> None:
        self._video, self._next = self._open(**self._size), 0

    def _clock(self) -> tuple[np.ndarray, float, bool]:
        count = len(self._video)
        spans = self._video.get_frame_timestamp(np.arange(count)).astype(np.float64)
        starts, ends = spans[:, 0], spans[:, 1]
        steps = np.diff(starts)
        usable = np.isfinite(spans).all() and (steps >= 0).all() and starts[-1] - starts[0] < 1e7
        if usable and (count == 1 or starts[-1] > starts[0]):
            step = float(np.median(steps)) if count > 1 else 0.0
            end = max(float(ends[-1]), starts[-1] + step)
            return starts - starts[0], float(end - starts[0]), True
        # decord seeks by time stamp. Without time stamps, only reading in order is right.
        rate = self._video.get_avg_fps()
        if not 0 < rate < 1000:
            raise DecodeError("its container gives neither usable time stamps nor a frame rate")
        return np.arange(count) / rate, count / rate, False


class PyavVideo:
    """The same through PyAV: exact times, AV1, transport streams, open groups of pictures."""

    def __init__(self, path: str, short_side: int | None, threads: int, strict: bool) -> None:
        import av

        self._strict = strict
        with av.open(path, metadata_errors="replace") as file:
            if not file.streams.video:
                raise DecodeError("it has no video stream (sound only?)")
            pts: set[int] = set()
            self._dts: dict[int, int] = {}  # of key frames, by their time of presentation
            for packet in file.demux(file.streams.video[0]):
                if packet.size and packet.pts is not None:
                    if not packet.is_discard:  # it lies outside of the file's edit list
                        pts.add(packet.pts)
                    if packet.is_keyframe:
                        self._dts[packet.pts] = packet.pts if packet.dts is None else packet.dts
        self._pts, self._keys = sorted(pts), sorted(self._dts)
        if not self._pts or not self._keys:
            raise DecodeError("it has no frames, or they have no time stamps")
        self._file = av.open(path, metadata_errors="replace")
        self._stream = self._file.streams.video[0]
        self._stream.codec_context.thread_count = threads
        ticks = np.array(self._pts, dtype=np.float64) - self._pts[0]
        self.times = ticks * float(self._stream.time_base or 0)
        steps = np.diff(self.times)
        self.duration = float(self.times[-1] + (np.median(steps) if len(steps) else 0.0))
        self.fps = len(self.times) / self.duration if self.duration > 0 else 0.0
        self._at: int | None = None  # the time stamp of the last decoded frame
        self._frames: Iterator[Any] = iter(())
        first = self._frame(self._pts[0])
        self._turns = round(first.rotation / 90) % 4  # counter-clockwise
        self._size = scaled_size(first.height, first.width, short_side)
        height, width = self._size
        self.shape = (width, height) if self._turns % 2 else (height, width)

    def read(self, indices: list[int]) -> Iterator[np.ndarray]:
        height, width = self._size
        for index in indices:
            frame = self._frame(self._pts[index])
            yield np.rot90(
                frame.to_ndarray(format="rgb24", width=width, height=height), self._turns
            )

    def close(self) -> None:
        self._file.close()

    def _frame(self, wanted: int) -> Any:
        key = self._keys[max(bisect_right(self._keys, wanted) - 1, 0)]
        if self._at is None or not key <= self._at < wanted:
            # By decoding time, as containers do; with the key frame's own time of presentation a
            # seek can land on the next one.
            self._file.seek(self._dts[key], stream=self._stream)
            self._frames = self._file.decode(self._stream)
        frame = self._advance(wanted)
        if frame is None:
            raise DecodeError("frames are missing or damaged")
        if self._strict and frame.pts != wanted:
            raise DecodeError(DAMAGED)
        return frame

    def _advance(self, wanted: int) -> Any:
        for frame in self._frames:
            if frame.pts is not None and frame.pts >= wanted:
                if self._strict and frame.is_corrupt:
                    raise DecodeError(DAMAGED)
                self._at = frame.pts
                return frame
        self._at = None
        return None


def scaled_size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """(height, width) with the shorter side at most `short_side`, in proportion."""
    if short_side is None or min(height, width) <= short_side:
        return height, width
    scale = short_side / min(height, width)
    return round(height * scale), round(width * scale)


READERS: dict[str, Any] = {"decord": DecordVideo, "pyav": PyavVideo}


def open_video(
    path: str,
    short_side: int | None,
    threads: int,
    strict: bool,
    reader: str = "decord",
    seek: bool = False,
) -> DecordVideo | PyavVideo:
    """Open a file. Raises DecodeError, or ImportError if the reader is not installed.

    seek: see `DecordVideo`. PyAV does not need it.
    """
    more = {"seek": seek} if reader == "decord" else {}
    return in_words(lambda: READERS[reader](path, short_side, threads, strict, **more))


def in_words(call: Any) -> Any:
    """The result of the call. Turns all errors of decord into DecodeError with a plain message."""
    try:
        return call()
    except (DecodeError, ImportError):
        raise
    except MemoryError as error:
        raise DecodeError("decoding it needs too much memory") from error
    except Exception as error:
        raise DecodeError(_reason(str(error) or type(error).__name__)) from error


def _reason(text: str) -> str:
    known = {
        "cannot find video stream": "no video stream that decord can decode (is it sound only?)",
        "Error reading": "not a video file that decord can open (damaged or cut-off header?)",
        "Failed to measure": "no frame count: its header is damaged or it has no frames",
        "Invalid frame count": "it has no frames",
        "duplicate frames": DAMAGED,
        "Error sending packet": "damaged frames",
        "Invalid data found": "damaged, or not a video",
        "Unable to handle EOF": "frames are missing or damaged",
        "StopIteration": "frames are missing or damaged",
        "bad_alloc": "decoding it needs too much memory",
    }
    for sign, words in known.items():
        if sign in text:
            return words
    first = text.strip().splitlines()[0]
    return re.sub(r"^(\[[\d:]+\] \S+:\d+: )+", "", first)[:200]


def serve() -> None:
    """The child: requests from standard input, answers to what was standard output."""
    from multiprocessing.connection import Connection

    requests = Connection(os.dup(0), writable=False)
    answers = Connection(os.dup(1), readable=False)
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    _limit_memory()
    video: DecordVideo | PyavVideo | None = None
    while True:
        try:
            request = json.loads(requests.recv_bytes())
        except EOFError:  # the parent is gone or done
            return
        try:
            if request["do"] == "open":
                video = open_video(**request["file"])
                head = {"duration": video.duration, "fps": video.fps, "shape": video.shape}
                answers.send_bytes(json.dumps(head).encode())
                answers.send_bytes(video.times.tobytes())
            elif request["do"] == "read" and video is not None:
                frames = video.read(request["indices"])
                for _ in request["indices"]:
                    frame = in_words(lambda: next(frames))  # noqa: B023
                    answers.send_bytes(b"{}")
                    answers.send_bytes(np.ascontiguousarray(frame).reshape(-1).data)
            else:
                video = None
                answers.send_bytes(b"{}")
        except (DecodeError, ImportError) as error:
            kind = "import" if isinstance(error, ImportError) else "decode"
            answers.send_bytes(json.dumps({"error": str(error), "kind": kind}).encode())


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not POSIX
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_LIMIT if soft == resource.RLIM_INFINITY else min(soft, MEMORY_LIMIT)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    serve()
