"""A stream in the terminal: frames go in, the memory is printed as it goes, questions are asked."""

from __future__ import annotations

import select
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from compress.stream.watch import Watch

Said = tuple[float | None, str]


def said_at(text: str) -> Said:
    """A question, and the second that it is asked at: "@12 What is it?" is asked at second 12.

    Without a time it is asked at the end. Raises ValueError for a time that is no number.
    """
    if not text.startswith("@"):
        return None, text
    time, _, question = text[1:].partition(" ")
    try:
        return float(time), question.strip()
    except ValueError:
        raise ValueError(f"question {text!r}: expected '@SECONDS question'") from None


def play(
    stream: Watch,
    frames: Iterable[tuple[np.ndarray, float]],
    questions: list[Said],
    ask: Callable[[str], Any],
    every: float = 5.0,
) -> None:
    """Push frames with their seconds, print a line every `every` seconds, and ask.

    questions: asked at their time or at the end. Without any, lines are read from standard input,
    while the stream runs and after it, until an empty line or the end of input.
    """
    waiting = sorted((q for q in questions if q[0] is not None), key=lambda q: q[0] or 0.0)
    shown, time = -every, 0.0
    for frame, time in frames:
        while waiting and (waiting[0][0] or 0.0) < time:
            _put(*waiting.pop(0), ask)
        stream.push(frame, time)
        if time - shown >= every:
            shown = time
            print(_line(stream, time), flush=True)
        if not questions:
            for line in _typed():
                _put(time, line, ask)
    print(_line(stream, time), flush=True)
    for question in [*waiting, *(q for q in questions if q[0] is None)]:
        _put(*question, ask)
    if not questions:
        for line in sys.stdin:
            if not line.strip():
                break
            _put(time, line.strip(), ask)
    print(stream.report())


def _put(time: float | None, question: str, ask: Callable[[str], Any]) -> None:
    print(f"? {question}" if time is None else f"? {question}  [at {time:g} s]", flush=True)
    ask(question)


def _line(stream: Watch, time: float) -> str:
    told = stream.report()
    held = told.kept + told.text
    return (
        f"  {time:6.1f} s  {told.seen:6d} visual tokens seen, {held:5d} held in "
        f"{len(told.remembered):3d} steps, {told.cache_bytes / 2**20:.2f} MiB, "
        f"{told.push_ms:.0f} ms a step"
    )


def _typed() -> Iterator[str]:
    """Lines that have been typed so far."""
    try:
        while select.select([sys.stdin], [], [], 0)[0]:
            line = sys.stdin.readline()
            if not line.strip():
                return
            yield line.strip()
    except (ValueError, OSError):  # standard input is closed, or no file
        return
