"""Memories and positions of streams on clips that do not end: `python -m scripts.study_streams`.

The embedded model watches drawn clips (`vlm.embedded.scenes.endless`) and is asked about what is on
screen now, what was seen before, what came first, and how many there were. All configurations hold
the same number of tokens. The baseline is `recent-4`: a prompt of the last four frames alone
(SimpleStream). The others keep one recent frame, and fill the rest from the past. Each is compared
with the baseline question by question, in a paired test over clips.

Also measured: processor time of a pushed frame (the vision encoder apart, which runs once for all)
and of an answer, and bytes of the cache.
Writes `streams.json`, `streams.md` and `streams.png`; `--name` names other files. Answers are kept
below `--work`, and an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vlm
from compress import watch
from compress.parse import split_list
from eval.statistics import paired
from positions import StreamPositions
from positions.policies import Lazy
from scripts.common import COLOURS, add_folders, canvas, facts, write_json, write_table
from vlm.embedded.scenes import draw
from vlm.embedded.scenes.endless import MARKS, Endless

KINDS = ("now", "past", "order", "count")
BASELINE = "recent-4"
TOKENS = 144  # of a frame


@dataclass(frozen=True)
class Arm:
    """One configuration."""

    memory: str
    positions: str | StreamPositions = "eager"
    recent: int = 1
    more: dict[str, Any] = field(default_factory=dict)


ARMS = {
    BASELINE: Arm("recent", "eager", 4, {"instant": True}),
    "recent-4, not afresh": Arm("recent", "eager", 4),
    "uniform": Arm("uniform"),
    "random": Arm("random"),
    "change": Arm("change"),
    "scored": Arm("scored"),
    "foveate": Arm("foveate"),
    "foveate, original": Arm("foveate", "original"),
    "foveate, lazy at 32": Arm("foveate", Lazy(limit=32)),
    "foveate, unrotated": Arm("foveate", "unrotated"),
    "foveate, grouped": Arm("foveate", "grouped"),
    "foveate, v2pe": Arm("foveate", "v2pe"),
    "foveate, instant": Arm("foveate", "eager", 1, {"instant": True}),
    "uniform, original": Arm("uniform", "original"),
}


def ask_all(
    model: Any, processor: Any, arms: list[str], clip: Endless, marks: list[int], frames: int
) -> list[dict[str, Any]]:
    """One row for each question and arm. frames: how many frames' tokens are held, without text.

    All arms are pushed one picture before the next is drawn, so the encoder runs once for all;
    the time of a push is that of the language model and the memory.
    """
    streams: dict[str, Any] = {}
    first = None
    # Those that need most of the encoder come first, so that their encoding serves all.
    for name in sorted(arms, key=lambda name: ARMS[name].memory != "foveate"):
        arm = ARMS[name]
        options = {"recent": arm.recent, "positions": arm.positions, **arm.more}
        budget = frames * TOKENS + 8
        stream = watch(model, processor, arm.memory, budget, beside=first, **options)
        streams[name], first = stream, first or stream
    rows, step = [], 0
    for minute in marks:
        spent: dict[str, list[float]] = {name: [] for name in streams}
        while step < minute * clip.per_minute:
            picture = np.asarray(draw(clip.scene(step)))
            for name, stream in streams.items():
                began = time.process_time()
                stream.push(picture, step * 60 / clip.per_minute)
                spent[name].append(1e3 * (time.process_time() - began))
            step += 1
        for name, stream in streams.items():
            told = stream.report()
            facts_of = {"push_ms": float(np.median(spent[name])), "bytes": told.cache_bytes}
            facts_of |= {"steps": len(told.remembered), "position": told.position}
            for question in clip.questions(minute):
                began = time.process_time()
                said = stream.ask(question.text, 4)
                ask_ms = 1e3 * (time.process_time() - began)
                row = {"arm": name, "minute": minute, "kind": question.category}
                row |= {"answer": question.answer, "said": said, "ask_ms": ask_ms}
                rows.append(row | facts_of)
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.study_streams", description=__doc__)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--start", type=int, default=0, help="the clip to begin with")
    parser.add_argument("--split", default="test", choices=("val", "test"))
    parser.add_argument("--marks", default="1,4,16,64", help="minutes at which questions are asked")
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
    model, processor = vlm.load(args.model)
    args.work.mkdir(parents=True, exist_ok=True)
    rows = []
    order = [(args.start + number) % args.clips for number in range(args.clips)]
    for seed in order:
        clip = Endless(seed, args.split, args.per_minute)
        kept = args.work / f"{args.name}-{args.split}-{seed}.json"
        if not kept.exists():
            found = ask_all(model, processor, names, clip, marks, args.frames)
            kept.write_text(json.dumps(found), encoding="utf-8")
        found = json.loads(kept.read_text(encoding="utf-8"))
        if {row["arm"] for row in found} != set(names):
            raise ValueError(f"{kept} holds other arms: expected an empty --work")
        rows += [{"clip": seed} | row for row in found]
        print(f"clip {seed} done", flush=True)
    held = {"clips": args.clips, "split": args.split, "frames": args.frames, "marks": marks}
    rows.sort(key=lambda row: row["clip"])
    report = facts("study_streams", argv, **held, arms=names, rows=rows)
    path = args.output / args.name
    render(write_json(path.with_suffix(".json"), report), path)
    return 0


def right(found: dict[str, Any], arm: str, kind: str) -> tuple[list[float], list[int]]:
    """Whether each question of a kind was answered right, and its clip."""
    rows = [row for row in found["rows"] if row["arm"] == arm and row["kind"] == kind]
    return [float(row["said"] == row["answer"]) for row in rows], [row["clip"] for row in rows]


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
    write_table(path, "\n".join(lines))
    figure, axes = canvas(8, 4.5)
    for number, arm in enumerate([a for a in found["arms"] if "," not in a][: len(COLOURS)]):
        own = [r for r in found["rows"] if r["arm"] == arm and r["kind"] == "past"]
        means = [
            np.mean([r["said"] == r["answer"] for r in own if r["minute"] == mark])
            for mark in found["marks"]
        ]
        style = "--" if arm == BASELINE else "-"
        axes.plot(found["marks"], means, style, marker="o", color=COLOURS[number], label=arm)
    axes.set(xscale="log", xlabel="minutes", ylabel="right about the past", ylim=(0, 1))
    axes.set_xticks(found["marks"], [str(mark) for mark in found["marks"]])
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    sys.exit(main())
