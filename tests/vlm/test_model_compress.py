"""The model as a family of its own: what attaches to a LLaVA attaches to it."""

from __future__ import annotations

import pytest
import torch

from compress import compress
from tests.vlm import models, towers
from vlm import mini
from vlm.families import UnknownFamily, family_of
from vlm.model import from_llava

METHODS = ("duet", "divprune", "visionzip", "random", "fastv")
FUSIONS = {
    "sequence": {"window": {"sam": 2}},
    "rows": {"window": {"sam": 2}, "scheme": {"sam": {"type": "Compact", "by": "row"}}},
}


def ask(processor, count=2, **kwargs):
    texts = ["USER: <image>\nWhat ASSISTANT:", "and <image> is it a picture of a star"][:count]
    return processor(images=[models.picture(i) for i in range(count)], text=texts, **kwargs)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_one_expert_is_reduced_as_stock_llava_is(method):
    stock, processor = mini.build()
    towers.randomise(stock, std=0.15)
    ours = from_llava(stock)
    inputs = ask(processor, padding=True, return_tensors="pt")
    found = []
    for model in (stock, ours):
        generator = torch.Generator().manual_seed(0)
        with compress(model, method, budget=20, generator=generator) as c:
            logits = models.logits(model, inputs)
            ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
            found.append((logits, ids, str(c.allocation(144))))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=1e-4)
    assert torch.equal(found[0][1], found[1][1]) and found[0][2] == found[1][2]


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
@torch.no_grad()
def test_keep_all_is_bit_equal_with_two_experts(fusion):
    model, processor = models.build(("clip", "sam"), FUSIONS[fusion])
    inputs = ask(processor)
    expected = models.logits(model, inputs)
    how = {"max_new_tokens": 4, "do_sample": False}
    said = model.generate(**inputs, **how)
    with compress(model, "duet", budget=32):
        assert torch.equal(models.logits(model, inputs), expected)
        assert torch.equal(model.generate(**inputs, **how), said)
    assert torch.equal(models.logits(model, inputs), expected)


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
@pytest.mark.parametrize("method", [name for name in METHODS if name != "random"])
@torch.no_grad()
def test_a_batch_of_two_experts_gives_each_what_it_gets_alone(method, fusion):
    model, processor = models.build(("clip", "sam"), FUSIONS[fusion])
    inputs, first = ask(processor), ask(processor, 1)
    dense = models.logits(model, first)
    with compress(model, method, budget=10) as c:
        together, alone = models.logits(model, inputs), models.logits(model, first)
        assert c.allocation(32).average == pytest.approx(10, abs=2)
    real = inputs["attention_mask"][0].bool()
    torch.testing.assert_close(together[0][real], alone[0], atol=1e-4, rtol=1e-3)
    assert alone.shape == dense.shape and (alone - dense)[0, -1].abs().max() > 1e-3


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
@torch.no_grad()
def test_decoding_goes_on_where_one_forward_of_everything_would(fusion):
    model, processor = models.build(("clip", "sam"), FUSIONS[fusion])
    first = ask(processor, 1)
    how = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": -1}
    with compress(model, "duet", budget=10):
        out = model.generate(**first, **how, output_logits=True, return_dict_in_generate=True)
        longer = torch.cat([first["input_ids"], out.sequences[:, -3:-1]], dim=1)
        whole = models.logits(
            model,
            {
                "input_ids": longer,
                "attention_mask": torch.ones_like(longer),
                "pixel_values": first["pixel_values"],
            },
            logits_to_keep=3,
        )
    torch.testing.assert_close(torch.stack(out.logits, dim=1), whole, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_all_families_give_their_scores():
    model, processor = models.build(towers.FAMILIES, {"window": {"sam": 4}})
    inputs = ask(processor)
    with compress(model, "duet", budget=20):
        assert models.logits(model, inputs).isfinite().all()


@torch.no_grad()
def test_tiles_and_videos_are_reduced_too():
    model, processor = models.build(("clip",), max_tiles=4)
    frames = [models.picture(seed) for seed in range(3)]
    inputs = processor(
        images=models.picture(0, (64, 32)), videos=[frames], text="<image> and <video> what"
    )
    with compress(model, "duet", budget=8) as c:
        assert models.logits(model, inputs).isfinite().all()
        assert "8" in str(c.report())


def test_a_qformer_is_refused_with_a_reason():
    model, _ = models.build(("clip",), {"kind": "qformer", "queries": 3, "heads": 2})
    with pytest.raises(UnknownFamily, match="no place in the picture"):
        family_of(model)
