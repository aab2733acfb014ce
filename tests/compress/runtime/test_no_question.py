"""Methods that read the question, on prompts that have none after the image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from compress import compress
from compress.methods import CDPruner, Foveate, Method, MMTok
from tests import reference
from tests.compress.common import CLOSE, answer, logits_of
from tests.tiny import CASES, Case, Sample

METHODS: dict[str, Method] = {"foveate": Foveate(), "mmtok": MMTok(), "cdpruner": CDPruner()}
HOSTS = [case for case in CASES if case.name in ("llava", "qwen2_5_vl")]
each_method = pytest.mark.parametrize("name", METHODS)
each_host = pytest.mark.parametrize("case", HOSTS, ids=lambda case: case.name)


def ending_in_an_image(case: Case) -> Sample:
    """Text, then an image that nothing follows (not even the token that closes it)."""
    sample = case.sample((5, ("image", "a")), seed=3)
    last = int((sample.ids == reference.TOKEN["image"]).nonzero().max())
    return Sample(sample.ids[: last + 1], sample.shown)


@each_method
@each_host
def test_a_prompt_that_ends_in_an_image(case: Case, name: str) -> None:
    """Alone, beside another of its kind, and beside one that has a question."""
    model, method = case.model(), METHODS[name]
    sample, other = ending_in_an_image(case), case.sample((2, ("image", "b"), 6), seed=4)
    with compress(model, method, budget=case.budget):
        alone = logits_of(model, case.inputs([sample]))[0]
        assert bool(alone.isfinite().all())
        asked = logits_of(model, case.inputs([other]))[0]
        for batch in ([sample, sample], [sample, other], [other, sample]):
            together = logits_of(model, case.inputs(batch))
            wanted = torch.stack([alone if member is sample else asked for member in batch])
            torch.testing.assert_close(together, wanted, **CLOSE)
    if name == "foveate":
        with torch.no_grad():
            prefix = reference.reduce_prompt(model, case, method, case.budget, sample)
            logits, _ = reference.forward(model, prefix)
        # Under M-RoPE the stock `generate` goes on from the image's last position axis by axis, and
        # the stock forward from their maximum, so later steps are not compared.
        torch.testing.assert_close(alone[0], logits[-1], **CLOSE)


def caption(case: Case, seed: int) -> tuple[Sample, Tensor]:
    """An image and its caption, and labels of all text, as LLaVA's first stage has them."""
    sample = case.sample((1, ("image", "a"), 4), seed=seed)
    labels = sample.ids.clone()
    labels[labels == reference.TOKEN["image"]] = -100
    return sample, labels


def padded_right(case: Case, rows: list[tuple[Sample, Tensor]]) -> dict[str, Any]:
    given: dict[str, Any] = case.inputs([sample for sample, _ in rows], "right")
    labels = torch.full_like(given["input_ids"], -100)
    for row, (_, own) in enumerate(rows):
        labels[row, : len(own)] = own
    return given | {"labels": labels}


@each_method
@each_host
def test_a_training_batch_of_captions(case: Case, name: str) -> None:
    """All text is labelled: no text ranks, the loss is that of each alone, gradients are finite."""
    model, method = case.model(), METHODS[name]
    captions = [caption(case, seed) for seed in (1, 2)]
    question = case.sample((2, ("image", "b"), 6), seed=4)
    labels = torch.full_like(question.ids, -100)
    labels[-2:] = question.ids[-2:]
    mixed = [*captions, (question, labels)]
    with compress(model, method, budget=case.budget):
        loss = model(**padded_right(case, captions)).loss
        loss.backward()
        with torch.no_grad():
            alone = [model(**padded_right(case, [row])) for row in mixed]
            together = model(**padded_right(case, mixed))
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(bool(gradient.isfinite().all()) for gradient in gradients)
    model.zero_grad()
    torch.testing.assert_close(loss, (alone[0].loss + alone[1].loss) / 2, rtol=1e-4, atol=1e-5)
    for row, single in enumerate(alone):
        length = single.logits.shape[1]
        torch.testing.assert_close(together.logits[row, :length], single.logits[0], **CLOSE)


def test_the_question_is_read_where_there_is_one() -> None:
    """Else the tests above would pass without it."""
    case, method = HOSTS[0], Foveate(relevant=5.0)
    model, kept = case.model(), []
    for seed in (1, 2):
        sample = case.sample((3, ("image", "a")), seed=0)
        question = case.sample((6,), seed=10 + seed).ids
        with compress(model, method, budget=16) as c:
            answer(model, case.inputs([Sample(torch.cat([sample.ids, question]), sample.shown)]))
            kept.append(c.export()[0]["anchor"])
    assert not torch.equal(*kept)
