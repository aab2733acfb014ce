"""Decoding in a child process, so that a hostile video can only crash that process.

Compared with decoding in this process, it costs 0.2 to 0.3 s of processor time to start a child,
and a copy of each frame through a pipe: 2 ms for 1280 x 720, where decoding takes 7 to 15 ms.
Children without errors are kept for the next video. After an error, a crash or a time-out the child
is killed.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from vlm.media import decode

HEAD_LIMIT = 1 << 16  # bytes
TIMES_LIMIT = 1 << 30  # bytes: 134 million frames


class Worker:
    """One child that runs decode.py. Threads must not share it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            # -P: the modules in the folder of the script must not shadow others.
            [sys.executable, "-P", str(Path(decode.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # decord and FFmpeg print there, at length
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the decoder process has no pipes")
        self._requests = Connection(os.dup(self._process.stdin.fileno()), readable=False)
        self._answers = Connection(os.dup(self._process.stdout.fileno()), writable=False)
        self._process.stdin.close()
        self._process.stdout.close()

    def ask(self, **request: Any) -> None:
        try:
            self._requests.send_bytes(json.dumps(request).encode())
        except OSError as error:
            raise decode.DecodeError(f"the decoder {self._fate()}") from error

    def answer(self, timeout: float) -> dict[str, Any]:
        """The header of the next answer. Raises DecodeError if the child failed or ended."""
        head = json.loads(self.receive(timeout, HEAD_LIMIT))
        if head.get("kind") == "import":
            raise ImportError(f"the reader of videos is not installed: {head['error']}")
        if "error" in head:
            raise decode.DecodeError(head["error"])
        return head

    def receive(self, timeout: float, limit: int) -> bytes:
        try:
            if not self._answers.poll(timeout):
                raise decode.DecodeError(f"the decoder made no progress for {timeout:g} s")
            return self._answers.recv_bytes(limit)
        except (EOFError, OSError) as error:
            raise decode.DecodeError(f"the decoder {self._fate()}") from error

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._requests.close()
        self._answers.close()

    def _fate(self) -> str:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "stopped answering"
        return f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended (code {code})"


class IsolatedVideo:
    """The video of `decode.open_video(**file)` in a child, with the same attributes and methods."""

    def __init__(self, file: dict[str, Any], timeout: float) -> None:
        self._worker, self._timeout, self._clean = _take(), timeout, False
        try:
            self._worker.ask(do="open", file=file)
            head = self._worker.answer(timeout)
            times = self._worker.receive(timeout, TIMES_LIMIT)
        except BaseException:
            self._worker.kill()
            raise
        self.times = np.frombuffer(times, np.float64)
        self.duration, self.fps = float(head["duration"]), float(head["fps"])
        self.shape = (int(head["shape"][0]), int(head["shape"][1]))
        self._clean = True

    def read(self, indices: list[int]) -> Iterator[np.ndarray]:
        self._clean = False
        self._worker.ask(do="read", indices=indices)
        height, width = self.shape
        for _ in indices:
            self._worker.answer(self._timeout)
            pixels = self._worker.receive(self._timeout, height * width * 3)
            yield np.frombuffer(pixels, np.uint8).reshape(height, width, 3)
        self._clean = True

    def close(self) -> None:
        """Return the child to the pool, or kill it if its state is unknown."""
        if self._clean and not _idle:
            try:
                self._worker.ask(do="close")
                self._worker.answer(self._timeout)
                _idle.append(self._worker)
                return
            except decode.DecodeError:
                pass
        self._worker.kill()


_idle: list[Worker] = []


def _take() -> Worker:
    try:
        return _idle.pop()
    except IndexError:
        return Worker()


def _forget() -> None:
    # A forked copy of this process must not use or kill the children of its parent.
    _idle.clear()


def close_idle() -> None:
    """End the children that wait for the next video."""
    while _idle:
        _idle.pop().kill()


atexit.register(close_idle)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
