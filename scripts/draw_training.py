"""Draws how the two judges were trained: `python -m scripts.draw_training`.

Reads docs/results/mini-training.jsonl, the log of `train.mini`, and small-training.jsonl, that of
`train.small`, and writes the pictures beside them: the loss and the share of right answer tokens by
step of each stage, and right answers by category and minute.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from scripts.common import COLOURS, RESULTS, canvas
from train.mini.stages import STAGES

SHOWN = {
    "vision": ("image shape", "image character"),
    "closer": ("image shape", "image character"),
    "language": ("image answer", "video answer"),
    "bridge": ("image apart", "image see"),
    "joint": ("image answer", "video answer"),
}


# What is added to the minutes of learning in each run of the small judge: alignment, earlier runs,
# and before run 3, which counts on, the encoder's own learning.
BEFORE = {1: 8, 2: 83, 3: 102}
BEGINS = {"run 2": 69, "run 3: the encoder learns first": 132}  # minutes


def main(folder: Path = RESULTS) -> int:
    draw_mini(folder / "mini-training.jsonl")
    draw_small(folder / "small-training.jsonl")
    return 0


def read(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def draw_small(log: Path) -> None:
    """Right answers on validation pictures by minute; dotted lines where runs begin."""
    rows = [row for row in read(log) if "right" in row and "seconds" in row]
    minutes = [row["seconds"] / 60 + BEFORE[row["run"]] for row in rows]
    figure, axes = canvas(9, 4)
    kinds = [kind for kind in rows[0]["right"] if kind != "all"]
    for number, kind in enumerate([*kinds, "all"]):
        shares = [100 * row["right"][kind][0] / row["right"][kind][1] for row in rows]
        hue = COLOURS[(number + 1) % len(COLOURS)] if kind != "all" else "black"
        style = "--" if number >= len(COLOURS) - 1 else "-"
        width = 2.5 if kind == "all" else 1.2
        axes.plot(minutes, shares, style if kind != "all" else "-", color=hue, lw=width, label=kind)
    for name, minute in BEGINS.items():
        axes.axvline(minute, color="#999999", linestyle=":")
        axes.text(minute + 1, 2, name, color="#777777", fontsize=8)
    axes.set_xlabel("minutes on two shared cores")
    axes.set_ylabel("right answers, %")
    axes.set_ylim(0, 100)
    axes.legend(frameon=False, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    figure.savefig(log.with_suffix(".png"), dpi=110)


def draw_mini(log: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read(log)
    figure = Figure(figsize=(13, 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(STAGES))
    for stage, axes in zip(STAGES, panels, strict=True):
        selected = [row for row in rows if row["stage"] == stage]
        steps = [row["step"] for row in selected]
        axes.plot(steps, [row["image loss"] for row in selected], color=COLOURS[0], label="loss")
        for name, hue in zip(SHOWN[stage], COLOURS[1:], strict=False):
            axes.plot(steps, [row[name] for row in selected], color=hue, label=name)
        axes.set_title(stage)
        axes.set_xlabel("step")
        axes.set_ylim(0, 1.5)
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(log.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    sys.exit(main())
