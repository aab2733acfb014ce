"""A picture of attention mass: by segment in each layer, and by place in the visual sequence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Okabe and Ito's colours, black first.
COLOURS = ("#333333", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")


def draw_mass(found: Mapping[str, Mapping[str, Any]], path: str | Path) -> None:
    """Draw configurations beside each other (PNG, PDF or SVG). Needs matplotlib.

    found: by name, {"parts": {part: [share in each layer, then rollout]}, "places": [[share of each
    bin] in each layer, then rollout]}.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    width = 0.8 / len(found)
    for number, (name, one) in enumerate(found.items()):
        parts = one["parts"]
        rows = range(len(next(iter(parts.values()))))
        at = [row + (number - (len(found) - 1) / 2) * width for row in rows]
        base = [0.0 for _ in rows]
        for colour, (part, shares) in zip(COLOURS, parts.items(), strict=False):
            label = part if not number else None
            left.bar(at, shares, width * 0.92, bottom=base, color=colour, label=label)
            base = [a + b for a, b in zip(base, shares, strict=True)]
        places = one["places"][-1]
        centres = [(bin + 0.5) / len(places) for bin in range(len(places))]
        share = [value / max(sum(places), 1e-12) for value in places]
        right.plot(centres, share, marker="o", markersize=3, color=COLOURS[number + 1], label=name)
    layers = [f"layer {row}" for row in rows[:-1]]
    left.set_xticks(list(rows), [*layers, "rollout"], fontsize=8)
    left.set(ylabel="share of attention", ylim=(0, 1))
    left.set_title("bars: " + ", ".join(found), fontsize=8)
    right.set(
        xlabel="place in the visual sequence", ylabel="share of visual rollout", ylim=(0, None)
    )
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(fontsize=7, frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.08))
    right.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=110)
