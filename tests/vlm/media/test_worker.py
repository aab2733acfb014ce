"""The decoding process: reused, killed, replaced, and limited in memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vlm.clips import write_clip, write_sound
from vlm.media import MediaError, decode, iter_video, read_video, worker


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 frames at 10 per second."""
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


@pytest.fixture
def child(clip: Path) -> Iterator[int]:
    """The process id of the child that will serve the next video."""
    worker.close_idle()
    read_video(clip, frames=1)
    [idle] = worker._idle
    yield idle._process.pid
    worker.close_idle()


def test_a_child_is_used_again_and_replaced_after_an_error(clip: Path, child: int) -> None:
    read_video(clip, frames=1)
    assert worker._idle[0]._process.pid == child
    sound = write_sound(clip.parent / "sound.mp4")
    with pytest.raises(MediaError):
        read_video(sound)
    assert not worker._idle
    assert len(read_video(clip)) == 20


def test_a_child_that_crashes(clip: Path, child: int) -> None:
    chunks = iter_video(clip, chunk=1)
    next(chunks)
    os.kill(child, signal.SIGSEGV)
    with pytest.raises(MediaError, match=r"clip\.mp4: the decoder crashed \(SIGSEGV\)"):
        list(chunks)
    assert len(read_video(clip)) == 20


def test_a_child_that_hangs_is_killed(clip: Path, child: int) -> None:
    os.kill(child, signal.SIGSTOP)
    with pytest.raises(MediaError, match=r"no progress for 0\.2 s"):
        read_video(clip, timeout=0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_child_left_in_the_middle_of_an_answer_is_not_used_again(clip: Path, child: int) -> None:
    file = {"path": str(clip), "short_side": None, "threads": 1, "strict": True}
    video = worker.IsolatedVideo(file, timeout=60)
    next(video.read([0, 1, 2]))
    video.close()
    assert not worker._idle
    assert len(read_video(clip)) == 20


@pytest.mark.slow
def test_memory_of_the_child_is_limited() -> None:
    code = "from vlm.media import decode; decode._limit_memory(); bytearray(9 << 30)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MemoryError" in done.stderr


def test_a_forked_copy_starts_children_of_its_own(clip: Path, child: int) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def read() -> None:
        queue.put((len(read_video(clip)), worker._idle[0]._process.pid != child))

    process = context.Process(target=read)
    process.start()
    process.join(60)
    assert queue.get() == (20, True)
    read_video(clip, frames=1)
    assert worker._idle[0]._process.pid == child


def test_reasons_are_in_words() -> None:
    def broken() -> None:
        raise RuntimeError("[23:40:33] /src/video.cc:151: Check failed: x\nStack trace:\n 1")

    with pytest.raises(decode.DecodeError, match=r"^Check failed: x$"):
        decode.in_words(broken)
