"""Samples of nothing but an image."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compress import compress
from compress.methods import Duet, FastV, Foveate, Method, PyramidDrop
from tests import reference
from tests.compress.common import CLOSE, NEW, answer
from tests.marks import later
from tests.tiny import CASES, Case, Sample

METHODS: dict[str, Method] = {
    "duet": Duet(variant="released"),
    "duet, all": Duet(query="all"),
    "pyramiddrop": PyramidDrop(),
    "fastv": FastV(),
    "foveate": Foveate(),
}
HOSTS = [case for case in CASES if case.name in ("llava", "llava_next", "foveate")]
each_host = pytest.mark.parametrize(
    "case", [HOSTS[0], *later(*HOSTS[1:])], ids=lambda case: case.name
)
each_method = pytest.mark.parametrize("name", METHODS)


def only_an_image(case: Case) -> Sample:
    sample = case.sample([("image", "a")], seed=3)
    assert bool((sample.ids == reference.TOKEN["image"]).all())
    return sample


@each_method
@each_host
def test_alone(case: Case, name: str) -> None:
    """One visual token is left in every layer: it ranks the others and predicts the next."""
    model, method, sample = case.model(), METHODS[name], only_an_image(case)
    with torch.no_grad():
        prefix = reference.reduce_prompt(model, case, method, case.budget, sample)
        ids, logits = reference.greedy(model, prefix, NEW)
    with compress(model, method, budget=case.budget) as c:
        out = answer(model, case.inputs([sample]))
        assert c.report().reduced.layers == prefix.counts[0]
    assert min(prefix.counts[0]) >= 1
    torch.testing.assert_close(torch.cat(out.logits), logits, **CLOSE)
    assert torch.equal(out.sequences[0, -NEW:], ids)


@each_method
@each_host
def test_in_a_batch(case: Case, name: str) -> None:
    """Beside samples with text, padded on either side; those get what they get alone."""
    model, method = case.model(), METHODS[name]
    batch = [case.sample((3, ("image", "b"), 7), seed=1), only_an_image(case)]
    batch += [case.sample([6], seed=2), case.sample((4, ("image", "a"), 2), seed=5)]
    with compress(model, method, budget=case.budget):
        together = answer(model, case.inputs(batch)).logits
        alone = [answer(model, case.inputs([sample])).logits for sample in batch]
        with torch.no_grad():
            right = model(**case.inputs(batch, "right")).logits
    for row, single in enumerate(alone):
        actual = torch.stack([step[row] for step in together])
        torch.testing.assert_close(actual, torch.cat(single), **CLOSE)
        torch.testing.assert_close(right[row, len(batch[row].ids) - 1], single[0][0], **CLOSE)


def test_a_caption_without_any_prompt_is_not_predicted_from_itself() -> None:
    """All text is the answer: its first word is predicted from what is left of the image."""
    case: Any = HOSTS[0]
    model, image = case.model(), only_an_image(case)
    method, logits = Duet(layers=(1, 3), ratios=(0.6, 0.0)), []
    for word in (9, 10):
        ids = torch.cat([image.ids, torch.tensor([word, 11, 12])])
        labels = torch.where(ids == reference.TOKEN["image"], -100, ids)
        with compress(model, method, budget=case.budget), torch.no_grad():
            out = model(**case.inputs([Sample(ids, image.shown)]), labels=labels[None])
        logits.append(out.logits[0, len(image.ids) - 1])
    torch.testing.assert_close(*logits, **CLOSE)
