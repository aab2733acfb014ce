"""Recipe files: those that ship, overrides, and files that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from train.fields import RecipeError
from train.preflight import deepspeed_settings
from train.recipe_files import FOLDER, load_recipe, to_yaml

MINIMAL = "learning_rate: {projector: 1e-3}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted((FOLDER / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_recipes_that_ship_are_recipes(path: Path) -> None:
    recipe = load_recipe(path.stem)
    assert load_recipe(f"recipes/{path.name}") == recipe
    assert recipe.model is None and recipe.output is None  # given by the user
    if recipe.deepspeed is not None:
        accumulation = recipe.accumulation(8)
        assert deepspeed_settings(recipe, accumulation) is not None


def test_a_recipe_that_extends_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: mine\n")
    with pytest.raises(RecipeError, match="extends this recipe"):
        load_recipe(path)


def test_overrides_set_nested_keys(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    recipe = load_recipe(path, ["optimizer.batch=64", "compress.budget=[64, 0.5]", "lora=null"])
    assert recipe.optimizer.batch == 64
    assert recipe.compress is not None and recipe.compress.budgets == (64, 0.5)
    with pytest.raises(RecipeError, match="expected key=value"):
        load_recipe(path, ["optimizer.batch"])
    with pytest.raises(RecipeError, match="precision is 'bf16' and has no keys"):
        load_recipe(path, ["precision=bf16", "precision.x=1"])


def test_a_recipe_written_out_reads_back_the_same(tmp_path: Path) -> None:
    recipe = load_recipe("duet_64", ["model=base", "data.files=[a.json]", "data.validation=0.1"])
    assert load_recipe(write(tmp_path, to_yaml(recipe))) == recipe


def test_a_name_that_is_no_recipe_says_which_there_are() -> None:
    with pytest.raises(RecipeError, match="did you mean 'finetune'"):
        load_recipe("recipes/finetun.yaml")
