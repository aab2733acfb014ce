"""Errors in a recipe name the key, the value and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from train.fields import RecipeError
from train.recipe_files import load_recipe

MINIMAL = "learning_rate: {projector: 1e-3}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: {projectr: 1e-3}", "learning_rate.projectr: .*did you mean 'projector'"),
        (MINIMAL + "optimiser: {batch: 4}", "optimiser: .*did you mean 'optimizer'"),
        (MINIMAL + "optimizer: {batch: 4.5}", "optimizer.batch is 4.5: expected a whole number"),
        (MINIMAL + "optimizer: {batch: yes}", "optimizer.batch is True: expected a whole number"),
        (MINIMAL + "optimizer: {warmup: lots}", "optimizer.warmup is 'lots': expected a number"),
        (MINIMAL + "optimizer: {schedule: cosin}", "did you mean 'cosine'"),
        (MINIMAL + "optimizer: {steps: 0}", "steps is 0: expected 1 or more"),
        (MINIMAL + "precision: fp16", "precision is 'fp16'"),
        (MINIMAL + "data: [a.json]", r"data is \['a.json'\]: expected keys with values"),
        (MINIMAL + "log: {every: 1}\nlog: {every: 2}", "'log' is given twice"),
        (MINIMAL + "slots: 8", "give `compress`"),
        ("learning_rate: {projector: 0}", "projector is 0: expected a positive number"),
        ("learning_rate: {}", "every part is frozen"),
        ("learning_rate: {projector: 1e-3}\nlora: {rank: 8}", "learning_rate.language_model"),
        ("optimizer: {batch: 4}", "learning_rate is missing: expected vision_encoder, projector"),
        (MINIMAL + "data: {validation: 1.5}", "data.validation is 1.5: expected a number below 1"),
        (
            MINIMAL + "compress: {budget: 2.5}",
            "budget is 2.5: expected a whole number or a number up",
        ),
        (
            MINIMAL + "compress: {budget: [64, 0]}",
            r"budget is \[64, 0\]: expected 1 or more or a p",
        ),
        (
            MINIMAL + "compress: {budget: 'shared:64'}",
            "compress: budget: what 'shared' gives an image depends on",
        ),
        (
            MINIMAL + "compress: {budget: 'coverage:2'}",
            "compress: Coverage: share is 2; it must be in",
        ),
        (
            MINIMAL + "compress: {budget: yes}",
            "compress.budget is True: expected a whole number or",
        ),
        (MINIMAL + "optimizer: {clip: .inf}", "optimizer.clip is inf: expected a finite number"),
        (MINIMAL + "optimizer: {betas: [0.9]}", r"betas is \[0.9\]: expected a list of 2"),
        (MINIMAL + "optimizer: {betas: [0.9, 1]}", "betas is 1: expected a number below 1"),
        (MINIMAL + "lora: {targets: [q_proj, 3]}", "lora.targets is 3: expected text"),
        (MINIMAL + "3: 4", "3: there is no such key"),
        ("- a\n- b", "expected keys with values, got list"),
        ("a: [", "is not YAML"),
        ("extends: nothing\n" + MINIMAL, "there is no such file"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path, text))
