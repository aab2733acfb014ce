"""What a run shows: lines as it goes, a report and a picture of the loss at its end."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from transformers import TrainerCallback

from train.reduction import Reducer

PACKAGES = ("torch", "transformers", "deepspeed", "accelerate", "peft")


class Steps(TrainerCallback):
    """Tells the reducer which step begins, and prints a line at each log."""

    def __init__(self, reducer: Reducer | None) -> None:
        self.reducer = reducer

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.reducer is not None:
            self.reducer.begin(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kw: Any) -> None:
        if state.is_world_process_zero and (line := log_line(state, logs)):
            print(line, flush=True)


def log_line(state: Any, logs: dict[str, Any]) -> str:
    """One log as a line for people; empty for logs that are no step's."""
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
    """Write `train_report.json`: the facts, and what they were found with."""
    found = {name: version(name) for name in PACKAGES if _installed(name)}
    facts = facts | {"packages": found, "python": platform.python_version()}
    path.write_text(json.dumps(facts, indent=2, default=str) + "\n", encoding="utf-8")


def _installed(name: str) -> bool:
    try:
        version(name)
    except ModuleNotFoundError:
        return False
    return True


def draw_loss(path: Path, curves: dict[str, list[tuple[float, float]]]) -> None:
    """Draw curves of (step, loss) as a PNG of 800 x 400 pixels."""
    width, height, left, low = 800, 400, 60, 360
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return
    last = max(step for step, _ in points)
    values = [loss for _, loss in points if loss == loss]  # NaN is not drawn
    bottom, top = min(values, default=0.0), max(values, default=1.0)
    span = (top - bottom) or 1.0

    def place(step: float, loss: float) -> tuple[float, float]:
        return (
            left + (width - left - 20) * step / max(last, 1),
            low - (low - 30) * (loss - bottom) / span,
        )

    for tick in range(5):
        value = bottom + span * tick / 4
        _, y = place(0, value)
        pen.line([(left, y), (width - 20, y)], fill=(225, 225, 225))
        pen.text((8, y - 6), f"{value:.3g}", fill="black")
    pen.text((left, low + 10), "0", fill="black")
    pen.text((width - 60, low + 10), f"step {last:g}", fill="black")
    for number, ((name, curve), colour) in enumerate(
        zip(curves.items(), ("#0071bc", "#c1272d"), strict=False)
    ):
        drawn = [place(step, loss) for step, loss in curve if loss == loss]
        if len(drawn) > 1:
            pen.line(drawn, fill=colour, width=2)
        for x, y in drawn[:: max(1, len(drawn) // 40)]:
            pen.ellipse([x - 2, y - 2, x + 2, y + 2], fill=colour)
        pen.text((width - 160, 8 + 14 * number), name, fill=colour)
    picture.save(path)
