"""Runs in one process: what is learned and saved, losses however a batch is split, resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from tests.marks import later
from tests.train import small
from tests.train.small import losses, weights
from train.checkpoints import WHOLE
from train.collate import Collator, blank_input
from train.parts import part_of
from train.records import DataError
from train.run import make_encoder, train


def test_a_run_learns_and_saves_what_from_pretrained_reads(tmp_path: Path) -> None:
    recipe = small.recipe(tmp_path, "optimizer.steps=6", "optimizer.warmup=0", "log.save=3")
    facts = train(recipe)
    out = tmp_path / "out"
    assert losses(facts)[-1] < 0.9 * losses(facts)[0]
    assert facts["steps"] == 6 and facts["processes"] == 1 and not facts["skipped"]
    model: Any = LlavaForConditionalGeneration.from_pretrained(out)
    before, after = weights(tmp_path / "base"), weights(out)
    assert before.keys() == after.keys()
    assert {part_of(n) for n in after if not torch.equal(before[n], after[n])} == {
        "vision_encoder",
        "projector",
        "language_model",
    }
    assert "use_cache" not in json.loads((out / "config.json").read_text())
    assert model.config.text_config.use_cache
    AutoProcessor.from_pretrained(out)
    for name in ("train_report.json", "loss.png", "recipe.yaml"):
        assert (out / name).stat().st_size > 0
    assert any((out / "tensorboard").iterdir())
    assert sorted(p.name for p in out.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]
    told = json.loads((out / "train_report.json").read_text())
    assert told["loss"] == [list(pair) for pair in facts["loss"]]
    assert told["totals"]["samples"] == 24 and told["packages"]["torch"] in torch.__version__
    shares = told["time"]
    assert shares["vision"] > 0 and shares["language_model"] > 0 and sum(shares.values()) <= 1.01


def test_frozen_parts_stay_bit_for_bit(tmp_path: Path) -> None:
    recipe = small.recipe(
        tmp_path, "learning_rate={projector: 0.001}", "optimizer.warmup=0", "checkpointing=true"
    )
    train(recipe)
    before, after = weights(tmp_path / "base"), weights(tmp_path / "out")
    changed = {n for n in after if not torch.equal(before[n], after[n])}
    assert changed and {part_of(name) for name in changed} == {"projector"}


@pytest.mark.parametrize("micro_batch", [1, *later(2)])
def test_losses_are_the_same_however_a_batch_is_cut_up(tmp_path: Path, micro_batch: int) -> None:
    runs, validation_losses = [], []
    for number, micro in enumerate((4, micro_batch)):
        recipe = small.recipe(
            tmp_path,
            f"optimizer.micro_batch={micro}",
            f"output={tmp_path / str(number)}",
            "data.validation=0.4",
        )
        facts = train(recipe)
        runs.append(losses(facts))
        validation_losses += [loss for _, loss in facts["validation_loss"]]
    assert runs[1] == pytest.approx(runs[0], rel=1e-4)
    assert validation_losses == pytest.approx([validation_losses[0]] * 2, rel=1e-4)


@pytest.mark.parametrize(
    "extra",
    [["compress={method: duet, budget: 8}"], *later([], ["positions=v2pe:0.25"])],
    ids=["duet", "dense", "v2pe"],
)
def test_packed_samples_learn_the_same_as_single_ones(tmp_path: Path, extra: list[str]) -> None:
    runs = [
        losses(
            train(
                small.recipe(
                    tmp_path,
                    f"data.packing={packed}",
                    "data.window=90",
                    "optimizer.micro_batch=4",
                    f"output={tmp_path / packed}",
                    *extra,
                    text_every=3,
                )
            )
        )
        for packed in ("false", "true")
    ]
    assert runs[1] == pytest.approx(runs[0], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [42, 1])
def test_the_same_seed_gives_the_same_run_with_draws(tmp_path: Path, seed: int) -> None:
    extra = ["compress={method: random, budget: [0.5, 0.25]}", "positions=v2pe:random"]
    runs = []
    for name, number in (("a", 42), ("b", seed)):
        recipe = small.recipe(tmp_path, *extra, f"seed={number}", f"output={tmp_path / name}")
        facts = train(recipe)
        runs.append((losses(facts), facts["totals"]["visual kept"]))
    assert (runs[0] == runs[1]) == (seed == 42)


@pytest.mark.parametrize("adapters", [False, *later(True)])
@pytest.mark.parametrize("stop", [2, *later(3)])
def test_going_on_is_the_same_as_not_stopping(tmp_path: Path, stop: int, adapters: bool) -> None:
    """Stops inside and at the end of an epoch of 2 steps; draws and dropout are resumed too."""
    extra = [
        "optimizer.steps=5",
        "log.save=1",
        "log.keep=5",
        "compress={method: random, budget: [0.5, 0.25]}",
    ]
    if adapters:
        extra.append("lora={rank: 4, alpha: 8, dropout: 0.2}")
    recipe = small.recipe(tmp_path, *extra)
    wanted = losses(train(recipe))
    out = tmp_path / "out"
    for step in range(stop + 1, 6):  # as if it had been killed while it saved step `stop` + 1
        (out / f"checkpoint-{step}" / WHOLE).unlink(missing_ok=True)
    whole = out / f"checkpoint-{stop}"
    again = train(recipe, resume=True)
    assert again["resumed_from"] == str(whole)
    assert losses(again) == wanted


@pytest.mark.slow
def test_damaged_pictures_are_skipped_and_named_up_to_the_share(tmp_path: Path) -> None:
    recipe = small.recipe(tmp_path, "data.bad_share=0.2")
    media = Path(str(recipe.data.media))
    (media / "1.png").write_bytes(b"no picture")
    facts = train(recipe)
    assert [Path(fault["where"].split(",")[0]).name for fault in facts["skipped"]] == ["data.json"]
    assert "1.png" in facts["skipped"][0]["reason"]
    for name in ("2.png", "3.png"):
        (media / name).write_bytes(b"no picture")
    recipe = small.recipe(tmp_path, "data.bad_share=0.2", f"output={tmp_path / 'more'}")
    for name in ("1.png", "2.png", "3.png"):  # written anew by the fixture
        (media / name).write_bytes(b"no picture")
    with pytest.raises(DataError, match="3 of 8 samples turned out bad"):
        train(recipe)


@pytest.mark.slow
def test_adapters_are_merged_into_the_saved_model(tmp_path: Path) -> None:
    recipe = small.recipe(tmp_path, "lora={rank: 4, alpha: 8}", "optimizer.warmup=0")
    train(recipe)
    before, after = weights(tmp_path / "base"), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    changed = {n for n in after if not torch.equal(before[n], after[n])}
    decoder = {n for n in changed if part_of(n) == "language_model"}
    assert decoder and all("layers" in n and "norm" not in n for n in decoder)
    assert {part_of(n) for n in changed} == {"vision_encoder", "projector", "language_model"}
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()


def test_a_blank_input_of_the_encoder_is_its_tokens_alone(tmp_path: Path) -> None:
    encoder = make_encoder(small.recipe(tmp_path), small.processor())
    blank = blank_input(encoder.blank("image"))
    assert len(blank["input_ids"]) == small.TOKENS
    assert blank["pixel_values"].shape[0] == 1
    assert isinstance(Collator(pad=0, blanks={"image": blank}), Collator)
