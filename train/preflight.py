"""Checks that run before any model is loaded, so that mistakes are found in seconds."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from train.checkpoints import check_output, is_universal
from train.dataset import Scan, split
from train.encode import TEMPLATES
from train.fields import RecipeError, nearest
from train.recipe import Recipe
from train.recipe_files import find
from train.reduction import make_calibration, make_method, make_positions


@dataclass
class Flight:
    """The result of the checks: everything that a run needs besides the model.

    Attributes:
        world, rank: the number of processes, and the number of this one.
        accumulation: forwards a step.
        deepspeed: the DeepSpeed settings, or None.
        training, validation: the samples.
        checkpoint: the checkpoint to continue from, or None.
    """

    world: int
    rank: int
    accumulation: int
    deepspeed: dict[str, Any] | None
    training: Scan
    validation: Scan | None
    checkpoint: Path | None


def check(recipe: Recipe, resume: bool = False) -> Flight:
    """Check a recipe, the launcher, the output folder, installed packages and the data.

    Raises RecipeError or `train.records.DataError`, both ValueErrors.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    accumulation, settings = check_recipe(recipe, world)
    if settings is not None and "RANK" not in os.environ:
        raise RecipeError(
            f"deepspeed is {recipe.deepspeed!r}, but no launcher started this process: run "
            "`deepspeed --module train ...`, or give --deepspeed null"
        )
    checkpoint = check_output(recipe, world, resume)
    if checkpoint is not None and settings is not None and is_universal(checkpoint):
        settings["checkpoint"] = settings.get("checkpoint", {}) | {"load_universal": True}
    training, validation = split(recipe.data, recipe.seed)
    return Flight(world, rank, accumulation, settings, training, validation, checkpoint)


def check_recipe(recipe: Recipe, world: int) -> tuple[int, dict[str, Any] | None]:
    """The checks that need no data. Returns forwards a step and the DeepSpeed settings."""
    if recipe.model is None:
        raise RecipeError("model: none is given; name a folder or a model with --model")
    _check_model(recipe.model)
    accumulation = recipe.accumulation(world)
    settings = deepspeed_settings(recipe, accumulation)
    if recipe.compress is not None:
        make_method(recipe.compress)
        make_calibration(recipe.compress)
    make_positions(recipe.positions)
    _check_template(recipe.data.template)
    if recipe.sequence_parallel > 1:
        _check_parallel(recipe)
    _check_packages(recipe)
    return accumulation, settings


def _check_model(name: str) -> None:
    path = Path(name)
    if name.startswith((".", "/")) and not path.is_dir():
        raise RecipeError(f"model: there is no folder {name}")
    if path.is_dir() and not (path / "config.json").is_file():
        raise RecipeError(f"model: {name} holds no config.json: expected a saved model")
    if not path.is_dir():
        try:
            AutoConfig.from_pretrained(name)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise RecipeError(f"model: {name} is no folder, nor found by name: {reason}") from error


def _check_parallel(recipe: Recipe) -> None:
    size = recipe.sequence_parallel
    if recipe.deepspeed is None:
        raise RecipeError(
            f"sequence_parallel is {size}, but deepspeed is null: sequences are shared by "
            "DeepSpeed's attention; give --deepspeed zero2 or zero3"
        )
    if recipe.attention == "eager":
        raise RecipeError(
            f"sequence_parallel is {size}, but attention is 'eager': expected 'sdpa' or "
            "'flash_attention_2'"
        )
    text = AutoConfig.from_pretrained(str(recipe.model)).get_text_config()
    heads, keys = text.num_attention_heads, text.num_key_value_heads
    if heads % size or (keys % size and size % keys):
        raise RecipeError(
            f"sequence_parallel is {size}, but the model has {heads} attention heads on {keys} "
            "key and value heads: expected a divisor of the former, and a divisor or a multiple "
            "of the latter"
        )


def _check_template(name: str) -> None:
    if name == "chat" or Path(name).is_file() or (TEMPLATES / f"{name}.jinja").is_file():
        return
    known = ["chat", *sorted(path.stem for path in TEMPLATES.glob("*.jinja"))]
    raise RecipeError(f"data.template is {name!r}, which is no file; {nearest(name, known)}")


def _check_packages(recipe: Recipe) -> None:
    needed = {"tensorboard": "tensorboard" in recipe.log.to, "wandb": "wandb" in recipe.log.to}
    needed["matplotlib"] = True  # for loss.png, at the end of the run
    needed["peft"] = recipe.lora is not None
    needed["bitsandbytes"] = recipe.lora is not None and recipe.lora.quantize
    needed["deepspeed"] = recipe.deepspeed is not None
    needed["flash_attn"] = recipe.attention == "flash_attention_2"
    for package, wanted in needed.items():
        if wanted and importlib.util.find_spec(package) is None:
            raise RecipeError(f"the recipe needs the package {package}, which is not installed")


def deepspeed_settings(recipe: Recipe, accumulation: int) -> dict[str, Any] | None:
    """The DeepSpeed settings of a recipe, or None.

    Raises RecipeError if the file does not exist, is not JSON, or contradicts the recipe.
    """
    if recipe.deepspeed is None:
        return None
    path = find(recipe.deepspeed, "deepspeed", ".json")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(f"{path} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise RecipeError(f"{path}: expected a JSON object, got {type(settings).__name__}")
    optimizer = recipe.optimizer
    expected = {
        "train_micro_batch_size_per_gpu": (optimizer.micro_batch, "optimizer.micro_batch"),
        "gradient_accumulation_steps": (accumulation, "what optimizer.batch leaves"),
        "train_batch_size": (optimizer.batch, "optimizer.batch"),
        "gradient_clipping": (optimizer.clip, "optimizer.clip"),
        "bf16.enabled": (recipe.precision == "bf16", f"precision: {recipe.precision}"),
        "fp16.enabled": (False, f"precision: {recipe.precision}"),
    }
    for key, (value, source) in expected.items():
        given: Any = settings
        for name in key.split("."):
            given = given.get(name) if isinstance(given, dict) else None
        if given not in (None, "auto", value):
            raise RecipeError(f"{path}: {key} is {given}, but the recipe says {value} ({source})")
    stage = settings.get("zero_optimization", {}).get("stage", 0)
    if recipe.lora is not None and recipe.lora.quantize and stage == 3:
        raise RecipeError(
            f"{path}: ZeRO-3 shards weights, which 4-bit weights (lora.quantize) do not support; "
            "give --deepspeed zero2"
        )
    for block in ("optimizer", "scheduler"):
        if block in settings:
            raise RecipeError(
                f"{path}: {block!r} is set, but the recipe has its own, with a learning rate for "
                f"each part: leave {block!r} out"
            )
    return settings
