"""A stream in the terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from compress import watch
from compress.stream.play import play, said_at
from tests.compress.stream.hosts import frames, host
from tests.vlm.clips import write_clip
from vlm.__main__ import main


def shown(count: int) -> Iterator[tuple[np.ndarray, float]]:
    for number, frame in enumerate(frames(count, "qwen2_vl")):
        yield frame, float(number)


def test_questions_at_their_time_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    stream = watch(*host("qwen2_vl"), "uniform", 100)
    asked: list[tuple[str, int]] = []

    def ask(question: str) -> None:
        asked.append((question, stream.report().steps))

    play(stream, shown(12), [said_at("Last?"), said_at("@5 When?"), said_at("@99 Late?")], ask, 4)
    assert asked == [("When?", 3), ("Late?", 6), ("Last?", 6)]
    printed = capsys.readouterr().out
    assert printed.count("visual tokens seen") == 4
    assert "tokens     100 of 100 held" in printed or "held: 4 text" in printed


def test_questions_from_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("What is it?\n\nnever asked\n"))
    stream = watch(*host("qwen2_vl"), "uniform", 100)
    asked: list[str] = []
    play(stream, shown(2), [], asked.append)
    assert asked == ["What is it?"]
    with pytest.raises(ValueError, match="'@soon what': expected '@SECONDS question'"):
        said_at("@soon what")


def test_ask_watch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_clip(tmp_path / "clip.mp4", 40, rate=10))
    picture = tmp_path / "memory.png"
    more = ["--fps", "2", "--budget", "600", "--recent", "2", "--overlay", str(picture)]
    assert main(["ask", "--watch", path, *more, "@1 What is it?", "Where is it?"]) == 0
    printed = capsys.readouterr().out
    assert "? What is it?  [at 1 s]" in printed
    assert "evicted" in printed
    assert picture.stat().st_size
    for wrong, says in (
        (["--image", "x.png", "Why?"], "no --image"),
        (["--budget", "0.5", "Why?"], "takes a count"),
        (["--budget", "100", "Why?"], "expected at least 580"),
        (["--memory", "best", "Why?"], "memory is 'best'"),
    ):
        assert main(["ask", "--watch", path, *wrong]) == 1
        assert says in capsys.readouterr().err
    assert main(["ask", "--image", "x.png"]) == 1
    assert "there is no question" in capsys.readouterr().err
