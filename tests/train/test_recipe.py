"""Recipes: accepted values, contradictions, and the published table."""

from __future__ import annotations

import pytest

from train.fields import RecipeError
from train.recipe_files import load_recipe


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


def test_batches_are_the_same_on_any_number_of_processes() -> None:
    recipe = load_recipe("finetune")
    assert [recipe.accumulation(world) for world in (1, 2, 8)] == [8, 4, 1]
    with pytest.raises(RecipeError, match=r"3 x micro_batch 16 .* multiple of 48, such as 144"):
        recipe.accumulation(3)
    with pytest.raises(RecipeError, match="sequence_parallel is 2 and there are 3 processes"):
        load_recipe("finetune", ["sequence_parallel=2"]).accumulation(3)


def test_slots_need_merged_tokens_at_home() -> None:
    duet = "compress={method: duet, budget: 64}"
    with pytest.raises(RecipeError, match="only merged tokens"):
        load_recipe("finetune", ["slots=8"])
    with pytest.raises(RecipeError, match="give up the places"):
        load_recipe("finetune", ["slots=8", duet, "positions=compact"])
