"""Contradictions with DeepSpeed's settings, the launcher, the packages or the model."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest

from tests.train import small
from train.fields import RecipeError
from train.preflight import check, check_recipe, deepspeed_settings
from train.recipe import LearningRate, Lora, Recipe
from train.recipe_files import load_recipe


def settings(tmp_path: Path, changes: dict[str, object]) -> Recipe:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(changes))
    return load_recipe("finetune", [f"deepspeed={path}"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_micro_batch_size_per_gpu": 4}, "is 4, but the recipe says 16"),
        ({"gradient_accumulation_steps": 3}, "is 3, but the recipe says 8"),
        ({"bf16": {"enabled": False}}, "bf16.enabled is False, but the recipe says True"),
        ({"fp16": {"enabled": True}}, "fp16.enabled is True, but the recipe says False"),
        ({"gradient_clipping": 0.5}, "is 0.5, but the recipe says 1.0"),
        ({"optimizer": {"type": "Adam"}}, "leave 'optimizer' out"),
    ],
)
def test_deepspeed_settings_that_contradict_are_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        deepspeed_settings(settings(tmp_path, changes), 8)


def test_four_bit_weights_are_not_spread(tmp_path: Path) -> None:
    changes = {"zero_optimization": {"stage": 3}}
    arguments = settings(tmp_path, changes)
    lora = Lora(quantize=True, merge=False)
    quantized = dataclasses.replace(
        arguments, lora=lora, learning_rate=LearningRate(language_model=1e-4)
    )
    with pytest.raises(RecipeError, match=r"ZeRO-3 shards weights.*zero2"):
        deepspeed_settings(quantized, 8)


def test_deepspeed_settings_that_agree_pass(tmp_path: Path) -> None:
    agreeing = {"train_batch_size": 128, "bf16": {"enabled": "auto"}}
    assert deepspeed_settings(settings(tmp_path, agreeing), 8) == agreeing


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=null"], "model: none is given"),
        (["model=./nowhere"], "model: there is no folder ./nowhere"),
        (["output=null"], "output: no folder is given"),
        (["compress.method=duett"], "compress.method is 'duett'; did you mean 'duet'"),
        (["compress.options.qery=all"], "options.qery: .*did you mean 'query'"),
        (["compress.options.query=some"], "query is 'some'"),
        (["positions=v2pee"], "positions: scheme 'v2pee'"),
        (["data.template=plane"], "data.template is 'plane'.*did you mean 'plain'"),
        (["deepspeed=zero2"], "no launcher started this process"),
        (["deepspeed=zero5"], "there is no such file, and none of that name in train/deepspeed"),
        (["optimizer.batch=3"], "such as 4"),
        (["attention=flash_attention_2"], "needs the package flash_attn"),
        (["lora={quantize: true, merge: false}"], "needs the package bitsandbytes"),
        (["lora={quantize: true}"], "adapters cannot be merged into 4-bit weights"),
        (["log.to=[tensorboard, wandb]"], "needs the package wandb"),
        (["log.to=wandv"], "log.to is 'wandv'; did you mean 'wandb'"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(
    tmp_path: Path, overrides: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    absent, real = ("flash_attn", "bitsandbytes", "wandb"), importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n in absent else real(n))
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("no model could be loaded from this")
    with pytest.raises(RecipeError, match=message):
        check(small.recipe(tmp_path, *overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["deepspeed=null"], "deepspeed is null: sequences are shared by DeepSpeed's"),
        (["deepspeed=zero2", "attention=eager"], "expected 'sdpa' or 'flash_attention_2'"),
        (
            ["sequence_parallel=3", "deepspeed=zero2"],
            "the model has 2 attention heads on 2",
        ),
    ],
)
def test_sequences_that_cannot_be_shared(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    recipe = small.recipe(tmp_path, "sequence_parallel=2", *overrides)
    with pytest.raises(RecipeError, match=message):
        check_recipe(recipe, recipe.sequence_parallel)
