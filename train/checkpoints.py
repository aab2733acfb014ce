"""Complete and incomplete checkpoints, and checks of the output folder before a run."""

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

WHOLE = "whole.json"  # written last: a checkpoint without it is incomplete
RECIPE = "recipe.yaml"
# Keys that may differ between a run and its continuation, as they do not change the result.
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
    """Write the file that marks a checkpoint as complete, after all its other files."""
    draft = folder / f"{WHOLE}.part"
    draft.write_text(json.dumps(facts))
    draft.replace(folder / WHOLE)


def checkpoints(output: Path) -> tuple[list[Path], list[Path]]:
    """The complete checkpoints of a run and the incomplete ones, each oldest first."""
    folders = [
        path
        for path in (output.glob("checkpoint-*") if output.is_dir() else [])
        if re.fullmatch(r"checkpoint-\d+", path.name) and path.is_dir()
    ]
    folders.sort(key=lambda path: int(path.name.rsplit("-", 1)[1]))
    complete = [path for path in folders if (path / WHOLE).is_file()]
    return complete, [path for path in folders if path not in complete]


def drop_cut_off(output: Path) -> list[Path]:
    """Remove incomplete checkpoints, which would count towards `log.keep`. Returns their paths."""
    cut = checkpoints(output)[1]
    for path in cut:
        shutil.rmtree(path)
    return cut


def check_output(recipe: Recipe, world: int, resume: bool) -> Path | None:
    """The checkpoint to continue from, or None to start from the beginning.

    Raises RecipeError if the output folder holds other files, a run while `resume` is False, a run
    of another recipe, or a checkpoint of another number of processes.
    """
    if recipe.output is None:
        raise RecipeError("output: no folder is given; name a new one with --output")
    output = Path(recipe.output)
    if output.exists() and not output.is_dir():
        raise RecipeError(f"output: {output} is a file; expected a new or empty folder")
    names = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    if not names:
        return None
    if RECIPE not in names:
        raise RecipeError(f"output: {output} holds {names[0]!r} and no run; name a new folder")
    if not resume:
        raise RecipeError(
            f"output: {output} holds a run already; give --resume to continue it, or name a new "
            "folder"
        )
    before = yaml.safe_load((output / RECIPE).read_text(encoding="utf-8"))
    changed = _differences(before, as_dict(recipe))
    if changed:
        raise RecipeError(
            f"output: {output} holds a run of another recipe ({'; '.join(changed)}); give the same "
            "recipe to continue it, or name a new folder"
        )
    complete, _ = checkpoints(output)
    if not complete:
        return None
    newest = complete[-1]
    written_by = json.loads((newest / WHOLE).read_text())["world"]
    if written_by != world and not is_universal(newest):
        raise RecipeError(
            f"{newest} was written by {written_by} processes and there are {world}: start "
            f"{written_by}, or convert it to a universal checkpoint first (see docs/train.md)"
        )
    return newest


def is_universal(checkpoint: Path) -> bool:
    """Whether ds_to_universal was run on it, so that any number of processes can load it."""
    return (checkpoint / "latest_universal").is_file()


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    if any(name == free or name.startswith(f"{free}.") for free in _FREE):
        return []
    if isinstance(before, dict) and isinstance(now, dict):
        keys = list(dict.fromkeys([*before, *now]))
        nested = [
            _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
            for key in keys
        ]
        return [difference for differences in nested for difference in differences]
    return [] if before == now else [f"{name} was {before!r} and is {now!r}"]
