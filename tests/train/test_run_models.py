"""Runs of other models than LLaVA, and of the recipes that ship."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

from tests.marks import later
from tests.tiny import CASES, IMAGE_TOKEN
from tests.train import small, small_qwen
from tests.train.small import losses, weights
from tests.vlm import models
from train.collate import Collator
from train.encode import TOKENS
from train.fields import RecipeError
from train.parts import part_of
from train.recipe_files import load_recipe
from train.run import rope_of, train
from vlm.families import adapter_of

PLAIN = ["deepspeed=null", "precision=fp32", "data.workers=0", "optimizer.batch=4"]


@pytest.mark.parametrize(
    "extra",
    [["compress={method: duet, budget: 0.3}"], *later([], ["positions=v2pe:0.25"])],
    ids=["duet", "dense", "v2pe"],
)
def test_a_model_with_mrope_learns_pictures_videos_and_text(
    tmp_path: Path, extra: list[str]
) -> None:
    base = small_qwen.write_base(tmp_path / "qwen")
    runs = []
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
        if not runs:
            media = Path(str(recipe.data.media))
            small_qwen.give_a_video(Path(recipe.data.files[0]), media)
            kept = Path(recipe.data.files[0]).read_text()
        Path(recipe.data.files[0]).write_text(kept)
        facts = train(recipe)
        assert not facts["skipped"]
        runs.append(losses(facts))
    assert runs[1] == pytest.approx(runs[0], rel=1e-4)


def test_a_model_that_plans_rows_by_itself_is_not_packed() -> None:
    case = next(case for case in CASES if case.name == "foveate")
    with pytest.raises(RecipeError, match=r"data.packing: this model .* set it to false"):
        rope_of(case.model())


@pytest.mark.parametrize("name", ["qwen3_5", "paligemma"])
def test_a_model_that_cannot_keep_samples_apart_is_not_packed(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    with pytest.raises(RecipeError, match=f"data.packing: samples of family '{name}'"):
        rope_of(case.model())


@pytest.mark.parametrize("name", ["qwen2_5_vl", *later("qwen2_5_omni", "ernie4_5_vl_moe")])
def test_packed_samples_of_a_model_under_mrope_have_their_own_positions(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    model = case.model()
    samples = [case.sample((3, ("image", "a"), 4), seed=1), case.sample([5], seed=2)]
    features = []
    for sample in samples:
        given = case.inputs([sample])
        del given["attention_mask"]
        given.setdefault("mm_token_type_ids", (given["input_ids"] == IMAGE_TOKEN).long())
        given = {k: v[0] if k in TOKENS else v for k, v in given.items()}
        given["labels"] = given["input_ids"].clone()
        features.append(given | {"faults": [], "cut": 0})
    accepts = frozenset(inspect.signature(model.forward).parameters)
    types = adapter_of(model).token_types
    places = rope_of(model)
    collate = Collator(0, {}, accepts, True, 99, places=places, token_types=types)
    batch = collate(features)
    batch.pop("about")
    assert batch["position_ids"].shape == (4, 1, sum(len(s.ids) for s in samples))
    with torch.no_grad():
        packed = model(**batch, use_cache=False).logits[0]
        alone = [model(**case.inputs([sample])).logits[0] for sample in samples]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-4, atol=3e-5)


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
        ("small", ["optimizer.micro_batch=2"]),
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
