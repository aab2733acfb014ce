"""Recipes: every key checked, overrides, what ships, and what contradicts the launcher."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest

from tests.train import small
from train.__main__ import main
from train.checkpoints import RECIPE, WHOLE, check_output
from train.fields import RecipeError
from train.preflight import check, check_recipe, deepspeed_settings
from train.recipe import LearningRate, Lora, Recipe
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


def test_llava_table_holds() -> None:
    """LLaVA-1.5's published hyper-parameters (arXiv 2310.03744, table 9)."""
    pretrain, finetune, lora = (load_recipe(n) for n in ("pretrain", "finetune", "lora"))
    assert pretrain.learning_rate.learning == {"projector": 1e-3}
    assert finetune.learning_rate.learning == {"projector": 2e-5, "language_model": 2e-5}
    assert lora.learning_rate.learning == {"projector": 2e-5, "language_model": 2e-4}
    assert (pretrain.optimizer.batch, finetune.optimizer.batch) == (256, 128)
    assert (pretrain.deepspeed, finetune.deepspeed, lora.deepspeed) == ("zero2", "zero3", "zero3")
    assert lora.lora is not None and (lora.lora.rank, lora.lora.alpha) == (128, 256)
    for recipe in (pretrain, finetune, lora):
        assert recipe.optimizer.warmup == 0.03 and recipe.optimizer.schedule == "cosine"
        assert recipe.optimizer.epochs == 1 and recipe.optimizer.weight_decay == 0
        assert recipe.data.window == 2048 and recipe.precision == "bf16" and recipe.checkpointing


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
            MINIMAL + "compress: {budget: yes}",
            "compress.budget is True: expected a whole number or",
        ),
        (MINIMAL + "optimizer: {clip: .inf}", "optimizer.clip is inf: expected a finite number"),
        (MINIMAL + "optimizer: {betas: [0.9]}", r"betas is \[0.9\]: expected a list of 2"),
        (MINIMAL + "optimizer: {betas: [0.9, 1]}", "betas is 1: expected a number below 1"),
        (MINIMAL + "lora: {targets: [q_proj, 3]}", "lora.targets is 3: expected text"),
        (MINIMAL + "3: 4", "3: there is no such key"),
        ("- a\n- b", "holds list"),
        ("a: [", "is no YAML"),
        ("extends: nothing\n" + MINIMAL, "there is no such file"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path, text))


def test_a_recipe_that_extends_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: mine\n")
    with pytest.raises(RecipeError, match="extends this one"):
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


def test_batches_are_the_same_on_any_number_of_processes() -> None:
    recipe = load_recipe("finetune")
    assert [recipe.accumulation(world) for world in (1, 2, 8)] == [8, 4, 1]
    with pytest.raises(RecipeError, match=r"3 x micro_batch 16 .* multiple of 48, such as 144"):
        recipe.accumulation(3)
    with pytest.raises(RecipeError, match="sequence_parallel is 2 and there are 3 processes"):
        load_recipe("finetune", ["sequence_parallel=2"]).accumulation(3)


def settings(tmp_path: Path, changes: dict[str, object]) -> Recipe:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(changes))
    return load_recipe("finetune", [f"deepspeed={path}"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_micro_batch_size_per_gpu": 4}, "is 4, and the recipe says 16"),
        ({"gradient_accumulation_steps": 3}, "is 3, and the recipe says 8"),
        ({"bf16": {"enabled": False}}, "bf16.enabled is False, and the recipe says True"),
        ({"fp16": {"enabled": True}}, "fp16.enabled is True, and the recipe says False"),
        ({"gradient_clipping": 0.5}, "is 0.5, and the recipe says 1.0"),
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
    found = settings(tmp_path, changes)
    lora = Lora(quantize=True, merge=False)
    quantized = dataclasses.replace(
        found, lora=lora, learning_rate=LearningRate(language_model=1e-4)
    )
    with pytest.raises(RecipeError, match=r"ZeRO-3 spreads weights.*zero2"):
        deepspeed_settings(quantized, 8)


def test_deepspeed_settings_that_agree_pass(tmp_path: Path) -> None:
    agreeing = {"train_batch_size": 128, "bf16": {"enabled": "auto"}}
    assert deepspeed_settings(settings(tmp_path, agreeing), 8) == agreeing


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=null"], "model: none is given"),
        (["model=./nowhere"], "model: ./nowhere is no folder"),
        (["output=null"], "output: no folder is given"),
        (["compress.method=duett"], "compress.method is 'duett'; did you mean 'duet'"),
        (["compress.options.qery=all"], "options.qery: .*did you mean 'query'"),
        (["compress.options.query=some"], "query is 'some'"),
        (["positions=v2pee"], "positions: scheme 'v2pee'"),
        (["data.template=plane"], "data.template is 'plane'.*did you mean 'plain'"),
        (["deepspeed=zero2"], "no launcher started this process"),
        (["deepspeed=zero5"], "there is no such file, nor one in train/deepspeed"),
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


def test_the_command_prints_one_line_on_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mini", "--model", "./nowhere", "optimizer.bach=3"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["finetun"]) == 2
    assert "did you mean 'finetune'" in capsys.readouterr().err


def test_dry_run_tells_groups_tokens_and_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, media = small.write_data(tmp_path)
    base = small.write_base(tmp_path / "base")
    line = ["mini", "--dry-run", "--processes", "2", "--model", str(base), "--data", str(data)]
    line += ["--media", str(media), "compress.budget=10", "optimizer.batch=32"]
    assert main(line) == 0
    said = capsys.readouterr().out
    assert "a step: 2 processes x 8 samples x 2 forwards = 32 samples" in said
    assert "visual tokens an image: 16 dense, 10 on average over 4 layers" in said
    for word in ("budget: 10", "language_model", "tokens a step", "optimizer", "GiB"):
        assert word in said


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["deepspeed=null"], "deepspeed null: sequences are shared by DeepSpeed's"),
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


def test_slots_need_merged_tokens_at_home() -> None:
    duet = "compress={method: duet, budget: 64}"
    with pytest.raises(RecipeError, match="only merged tokens"):
        load_recipe("finetune", ["slots=8"])
    with pytest.raises(RecipeError, match="give up the places"):
        load_recipe("finetune", ["slots=8", duet, "positions=compact"])
