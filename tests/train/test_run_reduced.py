"""Runs with a reduction: losses, gradients, and what the report says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compress import compress
from compress.methods import Duet
from tests.train import small
from tests.train.small import losses
from train.dataset import Samples, split
from train.parts import part_of
from train.recipe import Recipe
from train.run import make_collator, make_encoder, train

REDUCED = ["compress={method: duet, budget: 10}", "data.validation=0.25", "log.validate=2"]


@pytest.fixture(scope="module")
def reduced_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The facts of a run with a reduction and a validation, which several tests read."""
    return train(small.recipe(tmp_path_factory.mktemp("reduced"), *REDUCED))


@pytest.mark.slow
def test_losses_are_the_same_with_checkpointing(
    tmp_path: Path, reduced_run: dict[str, Any]
) -> None:
    facts = train(small.recipe(tmp_path, *REDUCED, "checkpointing=true"))
    assert losses(facts) == losses(reduced_run)
    assert facts["validation_loss"] == reduced_run["validation_loss"]


@pytest.mark.slow
def test_losses_are_the_same_with_checkpointing_and_no_reduction(tmp_path: Path) -> None:
    first, second = (
        losses(train(small.recipe(tmp_path, f"checkpointing={on}", f"output={tmp_path / on}")))
        for on in ("false", "true")
    )
    assert first == second


def test_the_report_tells_visual_tokens_before_and_after(reduced_run: dict[str, Any]) -> None:
    totals = reduced_run["totals"]
    assert totals["visual dense"] == 12 * small.TOKENS
    assert totals["visual kept"] == 12 * 10
    assert reduced_run["time"]["reduce"] > 0


@pytest.mark.slow
def test_coverage_gives_each_image_a_count_of_its_own(tmp_path: Path) -> None:
    asked = "compress={method: divprune, budget: ['coverage:0.5', 'coverage:0.6']}"
    totals = train(small.recipe(tmp_path, asked))["totals"]
    assert 0 < totals["visual kept"] < totals["visual dense"]


def test_a_validation_loss_is_told(reduced_run: dict[str, Any]) -> None:
    assert [step for step, _ in reduced_run["validation_loss"]] == [2, 3]
    assert reduced_run["held_out"] == 2


def batch_of(tmp_path: Path, recipe: Recipe, model: Any, pick: list[int]) -> dict[str, Any]:
    encoder = make_encoder(recipe, small.processor())
    training, _ = split(recipe.data, 0)
    samples = Samples(training, encoder)
    collate = make_collator(recipe, model, small.processor(), encoder, training)
    batch = collate([samples[n] for n in pick])
    batch.pop("about")
    return batch


@pytest.mark.parametrize("method", [None, Duet(variant="released")], ids=["dense", "duet"])
def test_a_blank_picture_changes_no_loss_and_gives_zero_gradients(
    tmp_path: Path, method: Duet | None
) -> None:
    recipe, model = small.recipe(tmp_path, text_every=2), small.model()
    with_blank = batch_of(tmp_path, recipe, model, [0, 2])
    assert "pixel_values" in with_blank
    alone = {k: v[:, : int(v.shape[1])] for k, v in with_blank.items() if k != "pixel_values"}
    blank = alone["input_ids"] == model.config.image_token_id
    alone["input_ids"] = alone["input_ids"].masked_fill(blank, 0)
    alone["attention_mask"] = alone["attention_mask"].masked_fill(blank, 0)
    wanted = model(**alone).loss
    attached = compress(model, method, 8) if method else None
    loss = model(**with_blank).loss
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, gradient in gradients.items():
        if part_of(name) == "projector":
            assert gradient is not None and not bool(gradient.any()), name
    words = gradients["model.language_model.embed_tokens.weight"]
    assert words is not None and bool(words.any())
    if attached is not None:
        assert attached.report().reduced.layers[-1] == 0
        attached.remove()


def test_gradients_reach_the_projector_and_the_vision_encoder_through_a_reduction(
    tmp_path: Path,
) -> None:
    recipe, model = small.recipe(tmp_path), small.model()
    with compress(model, "duet", 8):
        model(**batch_of(tmp_path, recipe, model, [0, 1, 2])).loss.backward()
    for part in (
        "multi_modal_projector.linear_1.weight",
        "vision_tower.embeddings.patch_embedding.weight",
    ):
        gradient = dict(model.named_parameters())[f"model.{part}"].grad
        assert gradient is not None and bool(gradient.any())


@pytest.mark.slow
@pytest.mark.parametrize("without", [[], ["slots=4"]], ids=["slots", "layout"])
def test_slots_and_their_layout_change_what_is_learned(tmp_path: Path, without: list[str]) -> None:
    merged, strided = "compress={method: pool, budget: 0.25}", ["slots=4", "slot_layout=strided"]
    first, second = (
        losses(train(small.recipe(tmp_path, merged, *options, f"output={tmp_path / name}")))
        for name, options in (("first", without), ("second", strided))
    )
    assert first != second
