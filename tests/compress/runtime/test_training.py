"""Loss and gradients under a compression."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from compress import compress
from compress.methods import PyramidDrop
from tests import reference
from tests.compress.common import duet
from tests.marks import some_cases
from tests.tiny import CASES, Case, Sample

BOTH = duet(layers=(1, 3), ratios=(0.6, 0.3))


def labelled(case: Case, side: str = "right") -> tuple[list[Sample], dict[str, Tensor]]:
    """Prompts with an answer of three tokens."""
    answers = [case.sample([3], seed=20 + n).ids for n in range(len(case.layouts))]
    samples = [
        Sample(torch.cat([sample.ids, said]), sample.shown)
        for sample, said in zip(case.samples(), answers, strict=True)
    ]
    given = case.inputs(samples, side)
    labels = torch.full_like(given["input_ids"], -100)
    for row, sample in enumerate(samples):
        real = given["attention_mask"][row].nonzero().flatten()
        labels[row, real[-3:]] = sample.ids[-3:]
    if case.two_way == "prompt":  # an answer is causal
        given["token_type_ids"] = (labels != -100).long()
    return samples, given | {"labels": labels}


def gradients(model: Any) -> dict[str, Tensor]:
    gradients_by_name = {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }
    model.zero_grad()
    return gradients_by_name


@some_cases
@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_and_gradients_equal_a_reduced_sequence(case: Case, side: str) -> None:
    """As if the sequence had been shortened by hand, labels and all."""
    model = case.model()
    samples, given = labelled(case, side)
    with compress(model, BOTH, budget=case.budget):
        out = model(**given)
        out.loss.backward()
    assert out.logits.shape[:2] == given["labels"].shape
    actual, total = gradients(model), torch.zeros(())
    for sample in samples:
        # The choice in training is that of the token before the answer.
        prompt = Sample(sample.ids[:-3], sample.shown)
        prefix = reference.reduce_prompt(model, case, BOTH, case.budget, prompt)
        logits, _ = reference.forward(model, prefix, sample.ids[-3:])
        total = total + torch.nn.functional.cross_entropy(logits[-4:-1], sample.ids[-3:])
    loss = total / len(samples)
    loss.backward()
    torch.testing.assert_close(out.loss, loss, rtol=1e-5, atol=1e-5)
    wanted = gradients(model)
    largest = max(float(g.abs().max()) for g in wanted.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-3, atol=2e-5 * largest)


def test_text_right_after_an_image_is_predicted_from_it() -> None:
    """The label after the image belongs to the last token that is left of it."""
    case = CASES[0]
    model, sample = case.model(), case.sample((3, ("image", "a"), 2))
    method = duet(layers=(), ratios=())
    with compress(model, method, budget=16), torch.no_grad():
        out = model(**case.inputs([sample]), labels=sample.ids[None])
    with torch.no_grad():
        prefix = reference.reduce_prompt(model, case, method, 16, sample)
        logits, _ = reference.forward(model, prefix)
    torch.testing.assert_close(out.logits[0, 66], logits[3 + 15], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("query", ["last", "all", "salient"])
def test_pretraining_prompts_without_a_question(query: str) -> None:
    """Nothing but the answer follows the image: its last token asks, and nothing is NaN."""
    case = CASES[0]
    model, sample = case.model(), case.sample((3, ("image", "a"), 3))
    labels = torch.full_like(sample.ids, -100)[None]
    labels[0, -3:] = sample.ids[-3:]
    for layers, ratios in (((1,), (0.6,)), ((1, 3), (0.6, 0.3))):
        method = duet(layers=layers, ratios=ratios, query=query)
        with compress(model, method, budget=16):
            out = model(**case.inputs([sample]), labels=labels)
        out.loss.backward()
        assert all(bool(g.isfinite().all()) for g in gradients(model).values())
        if len(layers) > 1:  # who asks once the last token is dropped, the reference does not say
            continue
        prompt = Sample(sample.ids[:-3], sample.shown)
        with torch.no_grad():
            prefix = reference.reduce_prompt(model, case, method, 16, prompt)
            logits, _ = reference.forward(model, prefix, sample.ids[-3:])
        wanted = torch.nn.functional.cross_entropy(logits[-4:-1], sample.ids[-3:])
        torch.testing.assert_close(out.loss, wanted, rtol=1e-5, atol=1e-5)


def test_gradients_reach_the_merged_tokens() -> None:
    case = CASES[0]
    model, given = case.model(), case.inputs(case.samples()[:1])
    image = given["pixel_values"].requires_grad_()
    with compress(model, "duet", budget=16) as c:
        model(**given, labels=given["input_ids"]).loss.backward()
        assign = c.steps(0)[0][2].assign[0]
    assert image.grad is not None and bool(image.grad.isfinite().all())
    assert bool((assign < 0).any())
    model.zero_grad()


@some_cases
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(case: Case, reentrant: bool) -> None:
    if reentrant and case.last_stage:
        pytest.skip("the stock model loses the gradients of keys that layers share")
    if reentrant and case.name == "llama4":
        pytest.skip("the stock vision encoder gets no gradients, whose layers take keywords alone")
    model = case.fresh().train()
    _, given = labelled(case)
    if case.recurrent:  # the sums of a state that goes to a cache are rounded otherwise
        given["use_cache"] = False
    with compress(model, BOTH, budget=case.budget):
        plain = model(**given).loss
        plain.backward()
        before = gradients(model)
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        again = model(**given).loss
        again.backward()
    assert torch.equal(plain, again)
    after = gradients(model)
    assert before.keys() == after.keys()
    for name, gradient in before.items():
        # Where gradients of several paths add up in any order.
        if case.name in ("vipllava", "ovis2", "minicpmv4_6", "molmo2", "granite4_vision"):
            torch.testing.assert_close(after[name], gradient, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(after[name], gradient)


def test_text_alone_trains_as_ever() -> None:
    case = CASES[0]
    model, ids = case.model(), case.sample([9], seed=4).ids[None]
    losses = []
    for budget in (None, 16):
        if budget is None:
            losses.append(model(input_ids=ids, labels=ids).loss)
        else:
            with compress(model, "duet", budget=budget):
                losses.append(model(input_ids=ids, labels=ids).loss)
    assert torch.equal(*losses)


def test_labels_rank_without_the_answers() -> None:
    """An answer that names the image's parts must not pick them: other answers, same tokens."""
    case = CASES[0]
    model, sample = case.model(), case.sample((3, ("image", "a"), 8))
    kept = []
    for seed in (0, 1):
        ids = sample.ids.clone()
        draw = torch.Generator().manual_seed(seed)
        ids[-3:] = torch.randint(6, 64, (3,), generator=draw)
        labels = ids.clone()
        labels[:-3] = -100
        method = PyramidDrop(layers=(1, 2), ratio=0.5, query="all")
        with torch.no_grad(), compress(model, method, budget=0.5) as c:
            model(**case.inputs([Sample(ids, sample.shown)]), labels=labels[None])
            kept.append([reduction.anchor for _, _, reduction in c.steps(0)[1:]])
    assert all(torch.equal(a, b) for a, b in zip(*kept, strict=True))
