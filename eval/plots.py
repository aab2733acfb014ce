"""Plots of a sweep as PNG: accuracy against the measured budget, overall and by category.

Colours are those of Okabe and Ito, which are safe for colour-blind readers. Each line also has its
own marker or dash, for copies in grey. Needs the package matplotlib.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from eval.statistics import Interval
from eval.summary import Result

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
MOST_PANELS = 30

Select = Callable[[Result], Interval | None]


def accuracy_curve(results: Sequence[Result], title: str, chance: float | None = None) -> bytes:
    """Accuracy with its interval against measured tokens, one line for each method."""
    figure, axes = _figure(1, 1, (8.4, 4.4))
    _panel(axes[0], results, lambda result: result.accuracy, chance)
    axes[0].set_title(title)
    axes[0].set_xlabel("visual tokens an input, mean over layers (measured)")
    axes[0].set_ylabel("accuracy, %")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return _png(figure)


def group_curves(results: Sequence[Result], column: str) -> bytes | None:
    """One panel for each value of `column`, with shared axes. None for too many values."""
    values = sorted({value for result in results for value in result.by.get(column, {})})
    if not 2 <= len(values) <= MOST_PANELS:
        return None
    across = 3 if len(values) in (3, 5, 6, 9) else min(4, len(values))
    down = math.ceil(len(values) / across)
    figure, axes = _figure(down, across, (3.1 * across, 2.5 * down + 0.7))
    for panel, value in zip(axes, values, strict=False):
        _panel(panel, results, partial(_group, column, value), None)
        count = max(r.by[column][value].count for r in results if value in r.by.get(column, {}))
        panel.set_title(f"{value} (n = {count})", fontsize=9)
    for panel in axes[len(values) :]:
        panel.set_visible(False)
    for panel in axes[max(0, len(values) - across) : len(values)]:
        panel.tick_params(labelbottom=True)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=min(5, len(labels)), frameon=False
    )
    figure.supxlabel("visual tokens an input", fontsize=9)
    figure.supylabel("accuracy, %", fontsize=9)
    return _png(figure)


def _group(column: str, value: str, result: Result) -> Interval | None:
    return result.by.get(column, {}).get(value)


def _figure(down: int, across: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    # Not through pyplot, which would choose a display and keep the figure.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    return figure, list(axes.ravel())


def _panel(axes: Any, results: Sequence[Result], select: Select, chance: float | None) -> None:
    dense = next((r for r in results if r.line == "dense"), None)
    at_dense = select(dense) if dense else None
    if at_dense is not None:
        axes.axhspan(100 * at_dense.low, 100 * at_dense.high, color="black", alpha=0.08, lw=0)
        axes.axhline(100 * at_dense.mean, color="black", lw=1.2, label="dense, 95% interval")
    if chance is not None:
        axes.axhline(100 * chance, color="black", lw=1, ls=(0, (1, 3)), label="chance")
    lines = list(dict.fromkeys(r.line for r in results if r.line != "dense"))
    shown: set[float] = set()
    for number, line in enumerate(lines):
        points = [
            (r.figures["tokens"], interval)
            for r in results
            if r.line == line and "tokens" in r.figures and (interval := select(r)) is not None
        ]
        points.sort(key=lambda point: point[0])  # two arms may spend the same
        if not points:
            continue
        tokens, intervals = zip(*points, strict=True)
        means = [100 * i.mean for i in intervals]
        low = [100 * (i.mean - i.low) for i in intervals]
        high = [100 * (i.high - i.mean) for i in intervals]
        axes.errorbar(
            tokens,
            means,
            yerr=[low, high],
            label=line,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            ls=DASHES[number // len(COLOURS) % len(DASHES)],
            ms=5,
            lw=1.5,
            capsize=2.5,
            elinewidth=0.9,
        )
        shown |= {round(t, 1) for t in tokens}
    if shown:
        axes.set_xscale("log", base=2)
        ticks = _apart(sorted(shown))
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
        axes.set_xticks([], minor=True)
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _apart(values: Sequence[float]) -> list[float]:
    """The increasing `values` that are far enough from the previous one to be labelled."""
    kept: list[float] = []
    for value in values:
        if not kept or value / kept[-1] > 1.15:
            kept.append(value)
    return kept


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140)
    return buffer.getvalue()
