"""Fine-tunes an embedded model as a part of a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import vlm
from train.recipe_files import load_recipe
from train.run import train

REPORT = "train_report.json"
SETTINGS = [
    "learning_rate.vision_encoder=1e-5",
    "optimizer.batch=16",
    "optimizer.micro_batch=16",
    "log.to=[]",
    "log.save=100000",
]


def tune(model: str, data: Path, output: Path, settings: list[str]) -> dict[str, Any]:
    """Train one model on `data`, unless it has been trained. Returns its report.

    model: "mini" or "mini-1d". data: a folder with `data.json` and `images/`. settings: overrides
    of the recipe "mini", after `SETTINGS`.
    """
    if not (output / REPORT).is_file():
        base = data / "base"
        if not base.is_dir():
            for part in vlm.load(model):
                part.save_pretrained(base)
        places = [f"model={base}", f"output={output}", f"data.media={data / 'images'}"]
        places += [f"data.files=[{data / 'data.json'}]"]
        train(load_recipe("mini", [*SETTINGS, *places, *settings]), resume=output.exists())
    report = json.loads((output / REPORT).read_text(encoding="utf-8"))
    kept = ("steps", "seconds", "loss", "totals", "time")
    return {name: report[name] for name in kept} | {"folder": str(output)}
