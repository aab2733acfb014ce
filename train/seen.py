"""The output of a run: a line at each log, and a report and a plot of the loss at the end."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from train.reduction import Reducer

PACKAGES = ("torch", "transformers", "deepspeed", "accelerate", "peft")


class Steps(TrainerCallback):
    """Tells the reducer which step begins, and prints each log as a line."""

    def __init__(self, reducer: Reducer | None) -> None:
        self.reducer = reducer

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.reducer is not None:
            self.reducer.begin(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kw: Any) -> None:
        if state.is_world_process_zero and (line := log_line(state, logs)):
            print(line, flush=True)


def log_line(state: Any, logs: dict[str, Any]) -> str:
    """One log as a line of text. Empty for a log that does not belong to a step."""
    if "eval_loss" in logs:
        return (
            f"step {state.global_step}/{state.max_steps}  validation loss {logs['eval_loss']:.4f}"
        )
    if "loss" not in logs:
        return ""
    rates = "  ".join(
        f"lr {name.removeprefix('lr_')} {rate:.2e}"
        for name, rate in logs.items()
        if name.startswith("lr_")
    )
    parts = [
        f"step {state.global_step}/{state.max_steps}",
        f"loss {logs['loss']:.4f}",
        rates,
        f"{logs['tokens_per_second']:.0f} tokens/s",
    ]
    if "visual_kept" in logs:
        parts.append(f"visual tokens kept {logs['visual_kept']:.1%}")
    shares = [
        f"{name.removeprefix('time_').replace('_', ' ')} {share:.0%}"
        for name, share in logs.items()
        if name.startswith("time_")
    ]
    return "  ".join([*parts, f"({', '.join(shares)})"])


def write_report(path: Path, facts: dict[str, Any]) -> None:
    """Write the facts of a run, with the versions of packages, as JSON."""
    versions = {name: version(name) for name in PACKAGES if _installed(name)}
    facts = facts | {"packages": versions, "python": platform.python_version()}
    path.write_text(json.dumps(facts, indent=2, default=str) + "\n", encoding="utf-8")


def _installed(name: str) -> bool:
    try:
        version(name)
    except ModuleNotFoundError:
        return False
    return True


def draw_loss(path: Path, curves: dict[str, list[tuple[float, float]]]) -> None:
    """Plot curves of (step, loss) as a PNG of 800 x 400 pixels. NaN leaves a gap."""
    # Not through pyplot, which would choose a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4))
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot(*np.reshape(curve, (-1, 2)).T, marker=".", label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(axis="y", alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path)
