"""SubRip subtitles (`.srt`): the texts on screen at given times.

Ours: a block without times must be an error here, where the usual parsers skip it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.samples import DataError

_TIMES = re.compile(r"(\d+):(\d\d):(\d\d)[,.](\d{1,3})\s*-->\s*(\d+):(\d\d):(\d\d)[,.](\d{1,3})")


@dataclass(frozen=True)
class Subtitle:
    """A text on screen from `start` to `end`, seconds."""

    start: float
    end: float
    text: str


def read_srt(path: Path) -> list[Subtitle]:
    """The subtitles of a file, in order, without tags such as <font>.

    Raises DataError if a block has no times, or if the file is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} as UTF-8: {error}") from error
    subtitles = []
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n").strip()):
        lines = block.strip().split("\n")
        # The times are on the first line or, below a number, on the second.
        for at, line in enumerate(lines[:2]):
            if match := _TIMES.search(line):
                words = " ".join(part.strip() for part in lines[at + 1 :])
                words = re.sub(r"<[^>]*>|\{\\[^}]*\}", "", words).strip()
                start, end = (_seconds(match.groups()[i : i + 4]) for i in (0, 4))
                if words:
                    subtitles.append(Subtitle(start, end, words))
                break
        else:
            if block.strip():
                raise DataError(f"{path}: no times in {lines[0][:60]!r}")
    return subtitles


def _seconds(parts: Sequence[str]) -> float:
    hours, minutes, seconds, fraction = parts
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + int(fraction.ljust(3, "0")) / 1000


def shown_at(subtitles: Sequence[Subtitle], times: Sequence[float]) -> list[str]:
    """The texts shown at any of `times` (start <= time < end), in order, each subtitle once."""
    shown = [s for s in subtitles if any(s.start <= time < s.end for time in times)]
    return [s.text for s in sorted(shown, key=lambda s: s.start)]
