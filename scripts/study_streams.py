"""Memories and positions of streams on clips that do not end: `python -m scripts.study_streams`.

The embedded model watches drawn clips (`vlm.embedded.scenes.endless`) and is asked about what is on
screen now, what was seen before, what came first, and how many there were. All configurations hold
the same number of tokens. The baseline is `recent-4`: a prompt of the last four frames alone
(SimpleStream). The others keep one recent frame, and fill the rest from the past. Each is compared
with the baseline question by question, in a paired test over clips.

The model learned clips of four frames, so by default positions are interpolated into the time axis
of four; other position policies stand after a comma. Not run: lazy and unrotated, whose positions
are those of eager here.

Also measured: processor time of a pushed frame (the vision encoder apart, which runs once for all)
and of an answer, bytes of the cache, peak memory of the process.
Writes `streams.json`, `streams.md` and `streams.png`; `--name` names other files. Answers are kept
below `--work`, a file a clip, written at each mark; an interrupted run goes on, one with fewer
`--clips` takes those that are there, and one with further `--arms` runs these alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vlm
from compress import watch
from compress.parse import split_list
from compress.stream.memories import Coverage, Older
from compress.stream.watch import Watch
from eval.records import replace
from eval.statistics import paired
from positions import StreamPositions
from positions.policies import Interpolated
from scripts.common import COLOURS, add_folders, canvas, facts, write_json, write_table
from vlm.embedded.scenes import draw
from vlm.embedded.scenes.endless import MARKS, Endless

KINDS = ("now", "past", "order", "count")
BASELINE = "recent-4"
TOKENS = 144  # of a frame


FITTED = Interpolated(span=3.0)  # the time axis of the four frames that the model learned


@dataclass(frozen=True)
class Arm:
    """One configuration."""

    memory: str
    positions: str | StreamPositions = FITTED
    recent: int = 1
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ChosenOnce(Coverage):
    """Coverage that chooses once for all streams that hold the same tokens, as those do that differ
    in positions alone. last: what was held, the count, and what stays."""

    last: list[tuple[Tensor, int, Tensor]] = field(default_factory=list, compare=False, repr=False)

    def keep(self, older: Older, count: int) -> Tensor:
        for places, asked, kept in self.last:
            if asked == count and torch.equal(places, older.places):
                return kept
        self.last[:] = [(older.places, count, super().keep(older, count))]
        return self.last[0][2]


ARMS = {
    BASELINE: Arm("recent", FITTED, 4, {"instant": True}),
    "uniform": Arm("uniform"),
    "random": Arm("random"),
    "change": Arm("change"),
    "scored": Arm("scored"),
    "foveate": Arm("foveate"),
    "foveate, eager": Arm("foveate", "eager"),
    "foveate, original": Arm("foveate", "original"),
    "foveate, grouped": Arm("foveate", "grouped"),
    "foveate, v2pe": Arm("foveate", "v2pe"),
    "foveate, instant": Arm("foveate", FITTED, 1, {"instant": True}),
    "foveate, fallback": Arm("foveate", FITTED, 1, {"fallback": 0.5}),
    "uniform, eager": Arm("uniform", "eager"),
    "uniform, original": Arm("uniform", "original"),
}


class Watched:
    """A clip that all arms watch at the same time.

    frames: how many frames' tokens are held, without text. Each picture is pushed to all streams
    before the next is drawn, so the encoder runs once for all; the time of a push is that of the
    language model and the memory. The baseline needs the last frames alone, when it is asked.
    """

    def __init__(self, judge: tuple[Any, Any], arms: list[str], clip: Endless, frames: int) -> None:
        self.judge, self.clip, self.budget = judge, clip, frames * TOKENS + 8
        self.once = ChosenOnce()
        self.step = 0
        self.latest: deque[tuple[np.ndarray, float]] = deque(maxlen=ARMS[BASELINE].recent)
        # Those that need most of the encoder come first, so that their encoding serves all.
        order = sorted(arms, key=lambda name: (ARMS[name].memory != "foveate", arms.index(name)))
        self.streams: dict[str, Watch] = {}
        for name in order:
            if name != BASELINE:
                self.streams[name] = self.stream(name, next(iter(self.streams.values()), None))
        self.spent: dict[str, list[float]] = {name: [] for name in arms}

    def stream(self, name: str, beside: Watch | None = None) -> Watch:
        """A stream of one arm."""
        arm = ARMS[name]
        memory = self.once if arm.memory == "foveate" else arm.memory
        options = {"recent": arm.recent, "positions": arm.positions, **arm.more}
        return watch(*self.judge, memory, self.budget, beside=beside, **options)

    def push(self) -> None:
        """Draw the next picture and push it to all streams."""
        picture = np.asarray(draw(self.clip.scene(self.step)))
        second = self.step * 60 / self.clip.per_minute
        for name, stream in self.streams.items():
            began = time.process_time()
            stream.push(picture, second)
            self.spent[name].append(1e3 * (time.process_time() - began))
        self.latest.append((picture, second))
        self.step += 1

    def ask(self, minute: int) -> list[dict[str, Any]]:
        """One row for each question and arm."""
        streams, rows = dict(self.streams), []
        if BASELINE in self.spent:
            streams[BASELINE] = self.stream(BASELINE)
            for picture, second in self.latest:
                streams[BASELINE].push(picture, second)
        for name, stream in streams.items():
            told, spent = stream.report(), self.spent[name]
            facts_of = {"push_ms": float(np.median(spent)) if spent else 0.0}
            facts_of |= {"bytes": told.cache_bytes, "steps": len(told.remembered)}
            facts_of["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            for question in self.clip.questions(minute):
                began = time.process_time()
                said = stream.ask(question.text, 4)
                ask_ms = 1e3 * (time.process_time() - began)
                row = {"arm": name, "minute": minute, "kind": question.category}
                row |= {"answer": question.answer, "said": said, "ask_ms": ask_ms}
                rows.append(row | facts_of)
            spent.clear()
        return rows


def ask_all(
    judge: tuple[Any, Any], arms: list[str], clip: Endless, marks: list[int], frames: int
) -> Iterator[list[dict[str, Any]]]:
    """For each mark, one row for each question and arm."""
    watched = Watched(judge, arms, clip, frames)
    for minute in marks:
        while watched.step < minute * clip.per_minute:
            watched.push()
        yield watched.ask(minute)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.study_streams", description=__doc__)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--start", type=int, default=0, help="the clip to begin with")
    parser.add_argument("--split", default="test", choices=("val", "test"))
    parser.add_argument("--marks", default="1,4,16", help="minutes at which questions are asked")
    parser.add_argument("--per-minute", type=int, default=6, help="frames a minute")
    parser.add_argument("--frames", type=int, default=4, help="frames' tokens that are held")
    parser.add_argument("--arms", default=";".join(ARMS), help="names, parted by ';'")
    parser.add_argument("--name", default="streams", help="of the files that are written")
    parser.add_argument("--model", default="mini")
    add_folders(parser, work="out/streams")
    args = parser.parse_args(argv)
    marks = sorted(int(mark) for mark in split_list(args.marks))
    names = [name.strip() for name in args.arms.split(";")]
    unknown = set(names) - set(ARMS)
    if unknown or not set(marks) <= set(MARKS) or BASELINE not in names:
        parser.error(
            f"expected marks of {MARKS} and arms of {'; '.join(ARMS)}, {BASELINE} included"
        )
    torch.set_num_threads(1)
    judge: Any = None  # loaded where something is missing
    args.work.mkdir(parents=True, exist_ok=True)
    rows = []
    order = [(args.start + number) % args.clips for number in range(args.clips)]
    for seed in order:
        clip = Endless(seed, args.split, args.per_minute)
        kept = args.work / f"{args.name}-{args.split}-{seed}.json"
        found = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else []
        done = {row["arm"] for row in found if row["minute"] == marks[-1]}
        missing = [name for name in names if name not in done]
        if missing:
            judge = judge or vlm.load(args.model)
            found = [row for row in found if row["arm"] not in missing]
            for answers in ask_all(judge, missing, clip, marks, args.frames):
                found += answers
                replace(kept, json.dumps(found))
        found = [row for row in found if row["arm"] in names]
        rows += [{"clip": seed} | row for row in found]
        print(f"clip {seed} done", flush=True)
    held = {"clips": args.clips, "split": args.split, "frames": args.frames, "marks": marks}
    rows.sort(key=lambda row: row["clip"])
    report = facts("study_streams", argv, **held, arms=names, rows=rows)
    path = args.output / args.name
    render(write_json(path.with_suffix(".json"), report), path)
    return 0


def right(
    found: dict[str, Any], arm: str, kind: str, minute: int | None = None
) -> tuple[list[float], list[int]]:
    """Whether each question of a kind was answered right, and its clip. minute: at one mark."""
    rows = [row for row in found["rows"] if row["arm"] == arm and row["kind"] == kind]
    rows = [row for row in rows if minute in (None, row["minute"])]
    return [float(row["said"] == row["answer"]) for row in rows], [row["clip"] for row in rows]


def by_minute(found: dict[str, Any]) -> list[str]:
    """Lines with what is right about now and about the past at each mark."""
    marks = found["marks"]
    lines = [f"{'minute':<24}" + "".join(f"{f'now, {mark}':>11}" for mark in marks)]
    lines[0] += "".join(f"{f'past, {mark}':>11}" for mark in marks)
    for arm in found["arms"]:
        cells = [np.mean(right(found, arm, k, m)[0]) for k in ("now", "past") for m in marks]
        lines.append(f"{arm:<24}" + "".join(f"{cell:>11.1%}" for cell in cells))
    return ["", *lines]


def render(found: dict[str, Any], path: Path) -> None:
    """Accuracy by kind with the paired difference to the baseline, cost, and a picture by mark."""
    lines = [f"{'':<24}" + "".join(f"{kind:>22}" for kind in KINDS) + f"{'push':>8}{'ask':>8}"]
    lines[0] += f"{'MiB':>7}{'steps':>7}"
    for arm in found["arms"]:
        line = f"{arm:<24}"
        for kind in KINDS:
            values, clips = right(found, arm, kind)
            cell = f"{sum(values) / len(values):.1%}" if values else "-"
            if arm != BASELINE and values:
                test = paired(right(found, BASELINE, kind)[0], values, clips)
                cell += f" {100 * test.difference:+.1f} p={test.p:.2g}"
            line += f"{cell:>22}"
        last = [r for r in found["rows"] if r["arm"] == arm and r["minute"] == found["marks"][-1]]
        push, first = (float(np.median([r[k] for r in last])) for k in ("push_ms", "ask_ms"))
        line += f"{push:>6.0f}ms{first:>6.0f}ms{last[0]['bytes'] / 2**20:>7.2f}"
        lines.append(line + f"{np.mean([r['steps'] for r in last]):>7.1f}")
    counts = {kind: len(right(found, BASELINE, kind)[0]) for kind in KINDS}
    lines.append(f"questions: {', '.join(f'{n} {kind}' for kind, n in counts.items())}")
    write_table(path, "\n".join([*lines, *by_minute(found)]))
    figure, axes = canvas(8, 4.5)
    drawn = found["arms"]
    if len(drawn) > len(COLOURS):
        drawn = [arm for arm in drawn if "," not in arm][: len(COLOURS)]
    for colour, arm in zip(COLOURS, drawn, strict=False):
        means = [np.mean(right(found, arm, "past", mark)[0]) for mark in found["marks"]]
        style = "--" if arm == BASELINE else "-"
        axes.plot(found["marks"], means, style, marker="o", color=colour, label=arm)
    axes.set(xscale="log", xlabel="minutes", ylabel="right about the past", ylim=(0, 1))
    axes.set_xticks(found["marks"], [str(mark) for mark in found["marks"]])
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    sys.exit(main())
