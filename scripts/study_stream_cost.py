"""Whether the cost of a stream stays flat for an hour: `python -m scripts.study_stream_cost`.

Each memory watches one drawn clip in a process of its own, on one thread. After every minute:
processor time of a pushed frame (the median of the minute, the vision encoder included), processor
time of a question up to the logits of its first token (the median of three), bytes of the cache
between two frames and at its largest, resident and peak memory of the process. Slopes are of least
squares over the minutes after the first, in which the memory fills, with 95% intervals.

Each minute is written when it is over, below `--work`; memories that are there are not run again.
Writes `stream-cost.json`, `stream-cost.md` and `stream-cost.png`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

import vlm
from compress import watch
from compress.stream.watch import Watch
from scripts.common import COLOURS, add_folders, canvas, facts, write_json, write_table
from scripts.study_streams import ARMS, BASELINE, TOKENS
from vlm.embedded.scenes import draw
from vlm.embedded.scenes.endless import Endless

SHOWN = (1, 10, 30, 60)  # minutes in the table
ASKED = "What colour is the star?"
MEASURED = {
    "push_ms": "a frame, ms",
    "ask_ms": "first token, ms",
    "cache_mib": "cache, MiB",
    "resident_mib": "process, MiB",
}


def resident() -> float:
    """Resident set of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize() / 2**20


def minute_of(stream: Watch, spent: list[float]) -> dict[str, float]:
    """What a stream costs after a minute in which its frames took `spent` ms each."""
    asked = []
    for _ in range(3):
        began = time.process_time()
        stream.logits(ASKED)
        asked.append(1e3 * (time.process_time() - began))
    told = stream.report()
    held = told.kept + told.text
    return {
        "push_ms": float(np.median(spent)),
        "ask_ms": float(np.median(asked)),
        "cache_mib": told.cache_bytes / 2**20,
        "most_mib": told.cache_bytes / 2**20 * told.most / held,
        "resident_mib": resident(),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measure(name: str, minutes: int, per_minute: int, frames: int, path: Path) -> None:
    """Watch a clip in this process, and append a line a minute to a file."""
    torch.set_num_threads(1)
    arm, clip = ARMS[name], Endless(0, "val", per_minute)
    budget = frames * TOKENS + 8
    options = {"recent": arm.recent, "positions": arm.positions, **arm.more}
    stream = watch(*vlm.load("mini"), arm.memory, budget, **options)
    with path.open("w", encoding="utf-8") as file:
        for minute in range(1, minutes + 1):
            spent = []
            for step in range((minute - 1) * per_minute, minute * per_minute):
                picture = np.asarray(draw(clip.scene(step)))
                began = time.process_time()
                stream.push(picture, step * 60 / per_minute)
                spent.append(1e3 * (time.process_time() - began))
            print(json.dumps({"minute": minute, **minute_of(stream, spent)}), file=file, flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.study_stream_cost", description=__doc__
    )
    parser.add_argument("--arms", default=f"{BASELINE};uniform;scored;foveate;foveate, original")
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--per-minute", type=int, default=60, help="frames a minute")
    parser.add_argument("--frames", type=int, default=4, help="frames' tokens that are held")
    parser.add_argument("--one", nargs=2, metavar=("ARM", "FILE"), help=argparse.SUPPRESS)
    add_folders(parser, work="out/stream-cost")
    args = parser.parse_args(argv)
    if args.one:
        measure(args.one[0], args.minutes, args.per_minute, args.frames, Path(args.one[1]))
        return 0
    names = [name.strip() for name in args.arms.split(";")]
    if set(names) - set(ARMS) or args.minutes < 3:
        parser.error(f"expected arms of {'; '.join(ARMS)}, and at least 3 minutes")
    args.work.mkdir(parents=True, exist_ok=True)
    sizes = {name: getattr(args, name) for name in ("minutes", "per_minute", "frames")}
    rows = {}
    for number, name in enumerate(ARMS):
        if name not in names:
            continue
        path = args.work / f"{number}-{'-'.join(map(str, sizes.values()))}.jsonl"
        if not path.exists() or len(path.read_text().splitlines()) < args.minutes:
            command = [sys.executable, "-m", "scripts.study_stream_cost", "--one", name, str(path)]
            for option, value in sizes.items():
                command += [f"--{option.replace('_', '-')}", str(value)]
            subprocess.run(command, check=True)
        rows[name] = [json.loads(line) for line in path.read_text().splitlines()]
        print(f"{name} done", flush=True)
    report = facts("study_stream_cost", argv, **sizes, rows={name: rows[name] for name in names})
    path = args.output / "stream-cost"
    render(write_json(path.with_suffix(".json"), report), path)
    return 0


def slope(rows: list[dict[str, float]], name: str) -> tuple[float, float, float]:
    """Change of a figure over an hour in percent of its mean, and the ends of its 95% interval."""
    later = rows[1:]  # the memory fills in the first minute
    minutes, values = ([row[key] for row in later] for key in ("minute", name))
    if np.ptp(values) == 0:
        return 0.0, 0.0, 0.0
    fit = stats.linregress(minutes, values)
    half = stats.t.ppf(0.975, len(later) - 2) * fit.stderr
    scale = 60 * 100 / float(np.mean(values))
    return scale * fit.slope, scale * (fit.slope - half), scale * (fit.slope + half)


def render(found: dict[str, Any], path: Path) -> None:
    """Figures at some minutes and slopes as a table, and a picture over minutes."""
    shown = [minute for minute in SHOWN if minute <= found["minutes"]]
    head = f"{'':<22}{'':<18}" + "".join(f"{f'{m} min':>9}" for m in shown)
    lines = [head + f"{'slope an hour, 95% interval':>34}"]
    for name, rows in found["rows"].items():
        at = {row["minute"]: row for row in rows}
        for number, (key, title) in enumerate(MEASURED.items()):
            line = f"{'' if number else name:<22}{title:<18}"
            line += "".join(f"{at[minute][key]:>9.2f}" for minute in shown)
            middle, low, high = slope(rows, key)
            lines.append(line + f"{f'{middle:+.1f}% ({low:+.1f} .. {high:+.1f})':>34}")
    lines.append(f"{found['minutes'] * found['per_minute']:,} frames")
    write_table(path, "\n".join(lines))
    figure, axes = canvas(8, 4)
    for colour, (name, rows) in zip(COLOURS, found["rows"].items(), strict=False):
        minutes = [row["minute"] for row in rows]
        axes.plot(minutes, [row["push_ms"] for row in rows], color=colour, label=name)
        axes.plot(minutes, [row["ask_ms"] for row in rows], ":", color=colour)
    axes.set(xlabel="minutes", ylabel="processor ms: a frame, and (dotted) a first token")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    sys.exit(main())
