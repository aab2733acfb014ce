"""The output of a run: lines, and the plot of the loss."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from train.seen import draw_loss, log_line


def test_a_log_is_one_line() -> None:
    state = SimpleNamespace(global_step=2, max_steps=9)
    logs = {"loss": 1.5, "lr_projector": 1e-3, "tokens_per_second": 700.4, "time_data": 0.25}
    line = log_line(state, logs | {"visual_kept": 1 / 3})
    assert line == (
        "step 2/9  loss 1.5000  lr projector 1.00e-03  700 tokens/s  visual tokens kept 33.3%  "
        "(data 25%)"
    )
    assert log_line(state, {"eval_loss": 0.5}) == "step 2/9  validation loss 0.5000"
    assert log_line(state, {"train_runtime": 3.0}) == ""


def test_the_loss_is_drawn_without_its_gaps(tmp_path: Path) -> None:
    path = tmp_path / "loss.png"
    draw_loss(path, {"loss": [(1, 3.0), (2, float("nan")), (3, 1.0)], "validation": [(3, 2.0)]})
    image = Image.open(path)
    assert image.size == (800, 400)
    colours = {tuple(c) for c in np.asarray(image.convert("RGB")).reshape(-1, 3)}
    assert {(31, 119, 180), (255, 127, 14)} <= colours  # one for each curve
    draw_loss(path, {"loss": []})
    assert path.stat().st_size > 0
