"""Wrong inputs and edge cases, on every family."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch

from compress import compress
from compress.methods import Duet
from tests import reference
from tests.compress.common import CLOSE, NEW, answer
from tests.marks import each_case, over, some_cases
from tests.tiny import CASES, IMAGE_TOKEN, VIDEO_TOKEN, Case, Sample
from vlm.families import ADAPTERS, UnknownFamily, adapter_of

BOTH = Duet(layers=(1, 3), ratios=(0.6, 0.3))
with_videos = over([c for c in CASES if any(("video", "v") in layout for layout in c.layouts)])


def test_an_unknown_family_names_the_known_ones() -> None:
    class Config:
        model_type = "blip_2"

    class Blip(torch.nn.Module):
        config, model = Config(), torch.nn.Identity()

    with pytest.raises(UnknownFamily) as caught:
        compress(Blip(), "duet", budget=8)
    message = str(caught.value)
    assert "'blip_2'" in message
    assert all(kind in message for family in ADAPTERS for kind in family.model_types)
    page = next(word for word in message.split() if word.endswith(".md"))
    assert (Path(__file__).parents[3] / page).is_file()


@each_case
@pytest.mark.parametrize("change", ["one less", "one more", "no image"])
def test_placeholders_that_do_not_match(case: Case, change: str) -> None:
    """Never run; the next call is right."""
    model, sample = case.model(), case.samples()[0]
    right = case.inputs([sample])
    (places,) = (sample.ids == IMAGE_TOKEN).nonzero(as_tuple=True)
    ids = sample.ids.clone()
    if change == "one less":
        ids[places[-1]] = 9
    elif change == "one more":
        ids = torch.cat([ids[:1], ids[places[:1]], ids[1:]])
    else:
        ids = torch.full_like(ids, 9)
    wrong = case.inputs([Sample(ids, sample.shown)])
    with compress(model, BOTH, budget=case.budget), torch.no_grad():
        wanted = model(**right).logits
        with pytest.raises(ValueError, match=r"(?i)image|placeholder|token"):
            model(**wrong)
        # Under M-RoPE generate lays out positions first, and has errors of its own.
        with pytest.raises((ValueError, RuntimeError, StopIteration)):
            answer(model, wrong)
        assert torch.equal(model(**right).logits, wanted)


@each_case
def test_a_prompt_with_no_image(case: Case) -> None:
    """It is the stock model's, also after one with images; there is nothing to report."""
    model, text = case.model(), case.inputs([case.sample([9], seed=5), case.sample([4], seed=6)])
    stock = answer(model, text)
    with compress(model, BOTH, budget=case.budget) as c:
        first = answer(model, text)
        with pytest.raises(RuntimeError, match="no prompt"):
            c.report()
        answer(model, case.inputs(case.samples()))
        again = answer(model, text)
    for out in (first, again):
        assert all(torch.equal(a, b) for a, b in zip(out.logits, stock.logits, strict=True))


@each_case
@pytest.mark.parametrize("budget", [1, 0.001])
def test_an_image_with_too_few_tokens_for_the_budget(case: Case, budget: float) -> None:
    """The nearest budget that can be reached is taken and reported; it is never none at all."""
    model, given = case.model(), case.inputs(case.samples())
    with compress(model, BOTH, budget=budget) as c:
        answer(model, given)
        report, first = c.report(), [tensors["size"] for tensors in c.export()]
    assert all(len(size) >= 1 for size in first)
    assert report.reduced.layers[0] == sum(len(size) for size in first)
    assert report.budget == pytest.approx(mean(report.reduced.layers) / len(first))


@each_case
def test_images_with_fewer_tokens_than_the_budget(case: Case) -> None:
    """A count that an image does not have leaves it whole; where no image can have it, it is
    refused at once."""
    model, given = case.model(), case.inputs(case.samples())
    count = adapter_of(model).image_tokens
    if count is not None:
        with pytest.raises(ValueError, match=rf"budget is 100000.*1\.\.{count}"):
            compress(model, BOTH, budget=100_000)
        return
    with torch.no_grad():
        with compress(model, BOTH, budget=100_000):
            kept = model(**given).logits
        assert torch.equal(kept, model(**given).logits)


@with_videos
def test_a_video_of_one_frame(case: Case) -> None:
    model, sample = case.model(), case.sample((2, ("video", "one"), 5))
    placeholders = torch.tensor([IMAGE_TOKEN, VIDEO_TOKEN])
    budget = min(6, int(torch.isin(sample.ids, placeholders).sum()) - 1)
    with torch.no_grad():
        prefix = reference.reduce_prompt(model, case, BOTH, budget, sample)
        ids, logits = reference.greedy(model, prefix, NEW)
    with compress(model, BOTH, budget=budget) as c:
        out = answer(model, case.inputs([sample]))
        assert int(c.export()[0]["grid"][0]) == 1
    torch.testing.assert_close(torch.cat(out.logits), logits, **CLOSE)
    assert torch.equal(out.sequences[0, -NEW:], ids)


@each_case
def test_generating_from_padding_is_refused(case: Case) -> None:
    """The stock model warns and goes on from padding; a forward for its logits is no such case."""
    model, samples = case.model(), case.samples()
    if not model._supports_logits_to_keep():
        pytest.skip("generate asks this stock model for all logits, as a forward for them does")
    with compress(model, BOTH, budget=case.budget):
        with pytest.raises(ValueError, match=r"rows \[.*padded on the right.*left"):
            answer(model, case.inputs(samples, "right"))
        with torch.no_grad():
            model(**case.inputs(samples, "right"), logits_to_keep=3)
        answer(model, case.inputs(samples, "left"))


def narrow(given: dict[str, Any]) -> dict[str, Any]:
    """The same in bfloat16, where it is floating point."""
    return {
        name: narrow(x) if isinstance(x, dict) else x.bfloat16() if x.is_floating_point() else x
        for name, x in given.items()
    }


@some_cases
def test_half_precision(case: Case) -> None:
    """bfloat16 follows float32 as closely as the stock model does; gradients are finite."""
    model, half = case.model(), case.fresh().bfloat16()
    given = case.inputs(case.samples())
    given16 = narrow(given)
    real = given["attention_mask"] == 1

    def gap(budget: Any) -> float:
        with torch.no_grad(), compress(model, "uniform", budget=budget):
            a = model(**given).logits[real]
        with torch.no_grad(), compress(half, "uniform", budget=budget):
            b = half(**given16).logits[real]
        assert b.dtype == torch.bfloat16 and bool(b.isfinite().all())
        return float((a - b.float()).abs().mean())

    # The same tokens are kept, so that selection is not what is compared.
    assert gap(case.budget) < 2 * gap(1.0)
    half.activation_checkpointing_enable({"use_reentrant": False})
    with compress(half.train(), BOTH, budget=case.budget):
        half(**given16, labels=given["input_ids"]).loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in half.parameters() if p.grad is not None)
