"""Which checkpoints of a run are whole, and what a folder holds before a run begins in it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from train.fields import RecipeError
from train.recipe import Recipe
from train.recipe_files import as_dict

WHOLE = "whole.json"  # the last file of a checkpoint: without it the rest may be cut off
RECIPE = "recipe.yaml"
# What may differ between a run and its continuation: it does not change what is learned.
_FREE = (
    "model",
    "output",
    "log",
    "data.workers",
    "deepspeed",
    "optimizer.micro_batch",
    "attention",
)


def mark_whole(folder: Path, facts: dict[str, Any]) -> None:
    """Write the file that says that every other file of a checkpoint is written."""
    draft = folder / f"{WHOLE}.part"
    draft.write_text(json.dumps(facts))
    draft.replace(folder / WHOLE)


def checkpoints(output: Path) -> tuple[list[Path], list[Path]]:
    """The whole checkpoints of a run, oldest first, and those that were cut off."""
    found = [
        path
        for path in (output.glob("checkpoint-*") if output.is_dir() else [])
        if re.fullmatch(r"checkpoint-\d+", path.name) and path.is_dir()
    ]
    found.sort(key=lambda path: int(path.name.rsplit("-", 1)[1]))
    return [p for p in found if (p / WHOLE).is_file()], [
        p for p in found if not (p / WHOLE).is_file()
    ]


def drop_cut_off(output: Path) -> list[Path]:
    """Remove the checkpoints that were cut off, so that none is rotated in before a whole one."""
    cut = checkpoints(output)[1]
    for path in cut:
        shutil.rmtree(path)
    return cut


def check_output(recipe: Recipe, world: int, resume: bool) -> Path | None:
    """The checkpoint to go on from, None to begin.

    Raises RecipeError: an output folder with something else in it, another run without `resume`,
    a run of another recipe, or a checkpoint of another number of processes.
    """
    if recipe.output is None:
        raise RecipeError("output: no folder is given; name a new one with --output")
    output = Path(recipe.output)
    if output.exists() and not output.is_dir():
        raise RecipeError(f"output: {output} is a file; expected a new or empty folder")
    held = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    if not held:
        return None
    if RECIPE not in held:
        raise RecipeError(f"output: {output} holds {held[0]!r} and no run; name a new folder")
    if not resume:
        raise RecipeError(
            f"output: {output} holds a run already; give --resume to go on with it, or name a new "
            "folder"
        )
    before = yaml.safe_load((output / RECIPE).read_text(encoding="utf-8"))
    changed = _differences(before, as_dict(recipe))
    if changed:
        raise RecipeError(
            f"output: {output} holds a run of another recipe ({'; '.join(changed)}); give the same "
            "recipe to go on, or name a new folder"
        )
    whole, _ = checkpoints(output)
    if not whole:
        return None
    wrote = json.loads((whole[-1] / WHOLE).read_text())["world"]
    if wrote != world and not is_universal(whole[-1]):
        raise RecipeError(
            f"{whole[-1]} was written by {wrote} processes and there are {world}: start as many, "
            "or make it a universal checkpoint first (docs/train.md says how)"
        )
    return whole[-1]


def is_universal(checkpoint: Path) -> bool:
    """Whether DeepSpeed's ds_to_universal was run on it, for any number of processes to read."""
    return (checkpoint / "latest_universal").is_file()


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    if any(name == free or name.startswith(f"{free}.") for free in _FREE):
        return []
    if isinstance(before, dict) and isinstance(now, dict):
        keys = list(dict.fromkeys([*before, *now]))
        found = [
            _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
            for key in keys
        ]
        return [difference for some in found for difference in some]
    return [] if before == now else [f"{name} was {before!r} and is {now!r}"]
