"""Draws the training of the embedded model: `python -m scripts.draw_training`.

Reads docs/results/mini-training.jsonl, the log of `train.mini`, and writes the picture beside it:
the loss and the share of right answer tokens, by step of each stage.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from scripts.common import COLOURS, RESULTS
from train.mini.stages import STAGES

SHOWN = {
    "vision": ("image shape", "image character"),
    "closer": ("image shape", "image character"),
    "language": ("image answer", "video answer"),
    "bridge": ("image apart", "image see"),
    "joint": ("image answer", "video answer"),
}


def main(log: Path = RESULTS / "mini-training.jsonl") -> int:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
