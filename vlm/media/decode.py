"""The video decoder, and the process that it runs in. Imports numpy and decord, nothing else.

FFmpeg inside decord can crash, hang or ask for all memory on a mangled file, and none of the
three can be caught from Python. `vlm.media.worker` therefore starts this file as a program of
its own and talks to it through pipes. Messages to the parent are JSON and raw bytes, never
pickle, so that a decoder taken over by a hostile file cannot run code in the parent.

`open_video` is the one place that knows decord: another reader takes its place by giving the
same four attributes and `read`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

MEMORY_LIMIT = 8 << 30  # bytes of address space of the child: a broken header may ask for more


class DecodeError(Exception):
    """The reason, in words, why a video cannot be decoded."""


class DecordVideo:
    """One video file.

    Attributes:
        times: seconds from the start of the stream, float64 (N,), rising. decord keeps them as
            float32: exact to 0.3 ms at one hour. Frames of containers without usable time stamps
            (raw MPEG, AVI with B-frames) get index / average rate.
        duration: seconds from the first frame to the end of the last.
        fps: mean frame rate.
        shape: (height, width) of the frames that `read` gives.
    """

    def __init__(self, path: str, short_side: int | None, threads: int, strict: bool) -> None:
        import decord

        # Any fraction above 0 makes the first frame that was replaced by its neighbour an error.
        options = {"num_threads": threads, "fault_tol": 1e-9 if strict else -1}
        self._open = lambda **size: decord.VideoReader(path, **options, **size)
        self._video = self._open()
        height, width = self._video.next().shape[:2]
        self._size: dict[str, int] = {}
        if short_side is not None and min(height, width) > short_side:
            scale = short_side / min(height, width)
            height, width = round(height * scale), round(width * scale)
            self._size = {"width": width, "height": height}
        self.shape = (height, width)
        self.times, self.duration, self._seekable = self._clock()
        if self._size or not self._seekable:
            self._rewind()
        self.fps = len(self.times) / self.duration if self.duration > 0 else 0.0

    def read(self, indices: list[int]) -> Iterator[np.ndarray]:
        """Frames at rising indices, each uint8 (height, width, 3), RGB, display matrix applied."""
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
        # decord finds frames by time stamp: without them only reading in order is right.
        rate = self._video.get_avg_fps()
        if not 0 < rate < 1000:
            raise DecodeError("its container gives neither usable time stamps nor a frame rate")
        return np.arange(count) / rate, count / rate, False


def open_video(path: str, short_side: int | None, threads: int, strict: bool) -> DecordVideo:
    """Opens a file, or raises DecodeError. ImportError where decord is not installed."""
    return in_words(lambda: DecordVideo(path, short_side, threads, strict))


def in_words(call: Any) -> Any:
    """The call's result; whatever decord raises becomes a DecodeError in plain words."""
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
        "duplicate frames": "damaged frames (damaged='repeat' shows their neighbours instead)",
        "Unable to handle EOF": "frames are missing or damaged",
        "StopIteration": "frames are missing or damaged",
        "bad_alloc": "decoding it needs too much memory",
    }
    for sign, words in known.items():
        if sign in text:
            return words
    first = text.strip().splitlines()[0]
    return re.sub(r"^\[[\d:]+\] \S+:\d+: ", "decord: ", first)[:200]


def serve() -> None:
    """The child: requests from standard input, answers to what was standard output."""
    from multiprocessing.connection import Connection

    requests = Connection(os.dup(0), writable=False)
    answers = Connection(os.dup(1), readable=False)
    os.dup2(2, 1)  # nothing that a library prints may mix with the answers
    _limit_memory()
    video: DecordVideo | None = None
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
