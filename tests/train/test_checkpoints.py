"""Checks of the output folder before a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train import small
from train.checkpoints import RECIPE, WHOLE, check_output
from train.fields import RecipeError
from train.recipe_files import to_yaml


def test_an_output_folder_with_something_in_it(tmp_path: Path) -> None:
    recipe, out = small.recipe(tmp_path), tmp_path / "out"
    assert check_output(recipe, 1, resume=False) is None
    out.mkdir()
    assert check_output(recipe, 1, resume=False) is None
    (out / "notes.txt").write_text("mine")
    with pytest.raises(RecipeError, match=r"holds 'notes.txt' and no run"):
        check_output(recipe, 1, resume=True)
    (out / "notes.txt").unlink()
    (out / RECIPE).write_text(to_yaml(recipe))
    with pytest.raises(RecipeError, match="holds a run already; give --resume"):
        check_output(recipe, 1, resume=False)
    assert check_output(recipe, 1, resume=True) is None  # nothing saved yet: from the start
    for step in (2, 10):
        (out / f"checkpoint-{step}").mkdir()
        (out / f"checkpoint-{step}" / WHOLE).write_text('{"world": 1}')
    (out / "checkpoint-12").mkdir()  # cut off
    assert check_output(recipe, 1, resume=True) == out / "checkpoint-10"
    with pytest.raises(RecipeError, match="written by 1 processes and there are 2"):
        check_output(recipe, 2, resume=True)
    other = small.recipe(tmp_path, "seed=7", "log.every=5")
    with pytest.raises(RecipeError, match=r"another recipe \(seed was 42 and is 7\)"):
        check_output(other, 1, resume=True)
