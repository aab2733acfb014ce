"""Draw a plan: position against token, with the spread of slots."""

from __future__ import annotations

from pathlib import Path

import torch

from positions.layout import Text
from positions.plan import Plan

AXES = (("t", "#c1272d", "o"), ("h", "#0071bc", "s"), ("w", "#2e8b57", "^"))


def draw(plan: Plan, path: str | Path, title: str = "") -> None:
    """Draw `plan` to `path` (PNG, PDF or SVG by its suffix). Needs matplotlib.

    Visual inputs are shaded. The slots of a token are dashes on a vertical line; the dot is the
    first slot, that of the anchor.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    token = torch.arange(len(plan))
    size = max(2.0, min(14.0, 500 / max(len(plan), 1)))
    segment_of = plan.segment_of
    for index, item in enumerate(plan.segments):
        tokens = (segment_of == index).nonzero().squeeze(1)
        if not isinstance(item, Text) and len(tokens):
            axes.axvspan(float(tokens[0]) - 0.5, float(tokens[-1]) + 0.5, color="0.93", zorder=0)
    flat = bool((plan.positions == plan.positions[..., :1]).all())
    for axis, (name, color, marker) in enumerate(AXES[:1] if flat else AXES):
        slots = plan.positions[:, :, axis]
        low, high = slots.min(1).values, slots.max(1).values
        if bool((high > low).any()):
            axes.vlines(token, low, high, color=color, alpha=0.3, linewidth=1)
            spots = token[:, None].expand_as(slots).flatten()
            axes.scatter(spots, slots.flatten(), s=size * 1.5, c=color, marker="_", linewidths=1)
        label = "position" if flat else name
        axes.scatter(token, slots[:, 0], s=size, c=color, marker=marker, linewidths=0, label=label)
    axes.scatter([len(plan)], [plan.next_position], s=22, c="black", marker="x", label="next")
    axes.set_xlabel("token")
    axes.set_ylabel("position")
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=7, frameon=False)
    # No date or version in the file: the same plan gives the same bytes.
    figure.savefig(path, dpi=80, metadata={"Software": None} if str(path).endswith("png") else None)
