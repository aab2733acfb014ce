"""Runs in one process: what learns, equal losses however the work is cut up, going on, reports."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from compress import compress
from tests.marks import later
from tests.tiny import CASES
from tests.train import small, small_qwen
from tests.vlm import models
from train.checkpoints import WHOLE
from train.collate import Collator, blank_input
from train.dataset import Samples, split
from train.encode import TOKENS
from train.fields import RecipeError
from train.parts import freeze, groups, part_of
from train.recipe import Recipe
from train.recipe_files import load_recipe
from train.records import DataError
from train.run import make_collator, make_encoder, rope_of, train

TINY = pytest.approx  # float32 sums in another order


def losses(facts: dict[str, Any]) -> list[float]:
    return [loss for _, loss in facts["loss"]]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


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


def test_groups_have_their_rates_and_norms_no_decay() -> None:
    recipe = load_recipe("mini")
    model = small.model()
    freeze(model, recipe)
    found = groups(model, recipe)
    assert sum(group.count for group in found) == sum(p.numel() for p in model.parameters())
    for group in found:
        assert group.rate == recipe.learning_rate.learning[group.part]
        for name in group.names:
            decays = not name.endswith("bias") and "norm" not in name
            assert (group.decay > 0) == decays, name


@pytest.mark.parametrize("micro_batch", [1, *later(2)])
def test_losses_are_the_same_however_a_batch_is_cut_up(tmp_path: Path, micro_batch: int) -> None:
    found, held = [], []
    for number, micro in enumerate((4, micro_batch)):
        recipe = small.recipe(
            tmp_path,
            f"optimizer.micro_batch={micro}",
            f"output={tmp_path / str(number)}",
            "data.validation=0.4",
        )
        facts = train(recipe)
        found.append(losses(facts))
        held += [loss for _, loss in facts["validation_loss"]]
    assert found[1] == TINY(found[0], rel=1e-4)
    assert held == TINY([held[0]] * 2, rel=1e-4)


REDUCED = ["compress={method: duet, budget: 10}", "data.validation=0.25", "log.validate=2"]


@pytest.fixture(scope="module")
def reduced_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The facts of a run with a reduction and a validation, which several tests read."""
    return train(small.recipe(tmp_path_factory.mktemp("reduced"), *REDUCED))


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


@pytest.mark.parametrize(
    "extra",
    [["compress={method: duet, budget: 8}"], *later([], ["positions=v2pe:0.25"])],
    ids=["duet", "dense", "v2pe"],
)
def test_packed_samples_learn_the_same_as_single_ones(tmp_path: Path, extra: list[str]) -> None:
    found = [
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
    assert found[1] == TINY(found[0], rel=1e-4)


def batch_of(tmp_path: Path, recipe: Recipe, model: Any, pick: list[int]) -> dict[str, Any]:
    encoder = make_encoder(recipe, small.processor())
    training, _ = split(recipe.data, 0)
    samples = Samples(training, encoder)
    collate = make_collator(recipe, model, small.processor(), encoder, training)
    batch = collate([samples[n] for n in pick])
    batch.pop("about")
    return batch


@pytest.mark.parametrize("method", [None, "duet"])
def test_a_blank_picture_changes_no_loss_and_gives_zero_gradients(
    tmp_path: Path, method: str | None
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
    assert loss.item() == TINY(wanted.item(), rel=1e-6)
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


@pytest.mark.parametrize("seed", [42, *later(1)])
def test_the_same_seed_gives_the_same_run_with_draws(tmp_path: Path, seed: int) -> None:
    extra = ["compress={method: random, budget: [0.5, 0.25]}", "positions=v2pe:random"]
    runs = []
    for name, number in (("a", 42), ("b", seed)):
        recipe = small.recipe(tmp_path, *extra, f"seed={number}", f"output={tmp_path / name}")
        facts = train(recipe)
        runs.append((losses(facts), facts["totals"]["visual kept"]))
    assert (runs[0] == runs[1]) == (seed == 42)


@pytest.mark.parametrize("without", [[], *later(["slots=4"])], ids=["slots", "layout"])
def test_slots_and_their_layout_change_what_is_learned(tmp_path: Path, without: list[str]) -> None:
    merged, strided = "compress={method: pool, budget: 0.25}", ["slots=4", "slot_layout=strided"]
    first, second = (
        losses(train(small.recipe(tmp_path, merged, *options, f"output={tmp_path / name}")))
        for name, options in (("first", without), ("second", strided))
    )
    assert first != second


@pytest.mark.parametrize(
    "extra",
    [["compress={method: duet, budget: 0.3}"], *later([], ["positions=v2pe:0.25"])],
    ids=["duet", "dense", "v2pe"],
)
def test_a_model_with_mrope_learns_pictures_videos_and_text(
    tmp_path: Path, extra: list[str]
) -> None:
    base = small_qwen.write_base(tmp_path / "qwen")
    found = []
    for packed in ("false", "true"):
        recipe = small.recipe(
            tmp_path,
            f"model={base}",
            f"output={tmp_path / packed}",
            "data.frames=4",
            "data.group=none",
            f"data.packing={packed}",
            "data.window=150",
            "optimizer.micro_batch=4",
            "optimizer.warmup=0",
            *extra,
            text_every=4,
        )
        if not found:
            media = Path(str(recipe.data.media))
            small_qwen.give_a_video(Path(recipe.data.files[0]), media)
            kept = Path(recipe.data.files[0]).read_text()
        Path(recipe.data.files[0]).write_text(kept)
        facts = train(recipe)
        assert not facts["skipped"]
        found.append(losses(facts))
    assert found[1] == TINY(found[0], rel=1e-4)


def test_a_model_that_plans_rows_by_itself_is_not_packed() -> None:
    case = next(case for case in CASES if case.name == "foveate")
    with pytest.raises(RecipeError, match=r"data.packing: this model .* set it to false"):
        rope_of(case.model())


@pytest.mark.parametrize("name", ["qwen3_5", "paligemma"])
def test_a_model_that_cannot_keep_samples_apart_is_not_packed(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    with pytest.raises(RecipeError, match=f"data.packing: samples of family '{name}'"):
        rope_of(case.model())


def test_packed_samples_of_a_model_under_mrope_have_their_own_positions(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "qwen2_5_vl")
    model = case.model()
    samples = [case.sample((3, ("image", "a"), 4), seed=1), case.sample([5], seed=2)]
    features = []
    for sample in samples:
        given = case.inputs([sample])
        del given["attention_mask"]
        given = {k: v[0] if k in TOKENS else v for k, v in given.items()}
        given["labels"] = given["input_ids"].clone()
        features.append(given | {"faults": [], "cut": 0})
    accepts = frozenset(inspect.signature(model.forward).parameters)
    collate = Collator(0, {}, accepts, packing=True, window=99, places=rope_of(model))
    batch = collate(features)
    batch.pop("about")
    assert batch["position_ids"].shape == (4, 1, sum(len(s.ids) for s in samples))
    with torch.no_grad():
        packed = model(**batch, use_cache=False).logits[0]
        alone = [model(**case.inputs([sample])).logits[0] for sample in samples]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-4, atol=3e-5)


def test_the_report_tells_visual_tokens_before_and_after(reduced_run: dict[str, Any]) -> None:
    totals = reduced_run["totals"]
    assert totals["visual dense"] == 12 * small.CELLS
    assert totals["visual kept"] == 12 * 10
    assert reduced_run["time"]["reduce"] > 0


def test_a_validation_loss_is_told(reduced_run: dict[str, Any]) -> None:
    assert [step for step, _ in reduced_run["validation_loss"]] == [2, 3]
    assert reduced_run["held_out"] == 2


@pytest.mark.parametrize("adapters", [False, *later(True)])
@pytest.mark.parametrize("stop", [2, *later(3)])
def test_going_on_is_the_same_as_not_stopping(tmp_path: Path, stop: int, adapters: bool) -> None:
    """Stops inside and at the end of an epoch of 2 steps; draws and adapters' dropout go on too."""
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
    assert len(blank["input_ids"]) == small.CELLS
    assert blank["pixel_values"].shape[0] == 1
    assert isinstance(Collator(pad=0, blanks={"image": blank}), Collator)


@pytest.mark.parametrize("name", ["poly_finetune", *later("poly_pretrain")])
@pytest.mark.parametrize("reduced", [True, *later(False)])
def test_a_model_of_several_experts_learns(tmp_path: Path, name: str, reduced: bool) -> None:
    made = small.recipe(tmp_path)
    model, processor = models.build(("clip", "sam"), {"window": {"sam": 2}})
    for part in (model, processor):
        part.save_pretrained(tmp_path / "poly")
    overrides = [f"model={tmp_path / 'poly'}", f"output={made.output}", *PLAIN]
    overrides += [f"data.media={made.data.media}", f"data.files=[{made.data.files[0]}]"]
    overrides += ["optimizer.steps=2", "optimizer.micro_batch=2", "log.every=1"]
    if reduced:
        overrides.append("compress={method: duet, budget: 6}")
    facts = train(load_recipe(name, overrides))
    assert all(loss == loss for loss in losses(facts)) and facts["time"]["vision"] > 0
    before, after = weights(tmp_path / "poly"), weights(tmp_path / "out")
    changed = {part_of(n) for n in after if not torch.equal(before[n], after[n])}
    learned = {"projector"} | ({"language_model"} if name == "poly_finetune" else set())
    assert changed == learned


PLAIN = ["deepspeed=null", "precision=fp32", "data.workers=0", "optimizer.batch=4"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("pretrain", ["optimizer.micro_batch=2"]),
        ("finetune", ["optimizer.micro_batch=2"]),
        ("lora", ["optimizer.micro_batch=2"]),
        ("duet_64", ["optimizer.micro_batch=2", "compress.budget=4"]),
        ("v2pe", ["optimizer.micro_batch=4", "data.window=200"]),
        ("ppe", []),
        ("poly_pretrain", ["optimizer.micro_batch=2"]),
        ("poly_finetune", ["optimizer.micro_batch=2"]),
    ],
)
def test_recipes_that_ship_run(tmp_path: Path, name: str, extra: list[str]) -> None:
    made = small.recipe(tmp_path)
    given = {"model": made.model, "output": made.output, "data.media": made.data.media}
    overrides = [f"{key}={value}" for key, value in given.items()]
    overrides += [f"data.files=[{made.data.files[0]}]", "optimizer.steps=2", "log.every=1"]
    facts = train(load_recipe(name, [*overrides, *PLAIN, *extra]))
    assert len(losses(facts)) == 2 and all(loss == loss for loss in losses(facts))
    if facts["recipe"]["compress"] is not None:
        assert facts["totals"]["visual kept"] < facts["totals"]["visual dense"]
