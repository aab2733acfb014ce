"""The contracts of all families: family x shape of method x attention backend x batch.

The quick suite runs a diagonal through the product; the rest of it is marked slow. Each case is
compared with `tests/reference.py`, which knows no hooks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from compress import compress
from compress.methods import DART, DivPrune, Duet, FastV, Foveate, Method, PyramidDrop, SparseVLM
from tests import reference
from tests.compress.common import CLOSE, NEW, answer, duet, fingerprint
from tests.marks import each_beam_case, each_case
from tests.tiny import CASES, Case

# What a reduction can be: pruning or merging pre-LLM, pruning in-LLM, both.
SHAPES = ("prune", "merge", "in_llm", "both")
ATTENTION = ("sdpa", "eager")
# Methods that differ in who ranks tokens in the language model, and when.
MIXED: dict[str, Method] = {
    "fastv": FastV(),
    "sparsevlm": SparseVLM(),
    "dart": DART(),
    "duet": Duet(variant="released"),
    "foveate": Foveate(),
    "pyramiddrop": PyramidDrop(),
}


def method_of(case: Case, shape: str) -> Method:
    """The method that stands for a shape, at the decoder layers that the family drops tokens at."""
    methods: dict[str, Method] = {
        "prune": DivPrune(),
        "merge": Duet(layers=(), ratios=()),
        "in_llm": PyramidDrop(layers=case.stages),
        "both": duet(layers=(case.stages[0], case.stages[-1]), ratios=(0.6, 0.3)),
    }
    return methods[shape]


def product() -> Iterator[Any]:
    """All of family x shape x attention, a diagonal of it quick."""
    for row, case in enumerate(CASES):
        for column, shape in enumerate(SHAPES):
            for kind, attention in enumerate(ATTENTION):
                if attention not in case.attention:
                    continue
                quick = case.quick or case.quick_in_matrix
                quick = quick and (row + column) % 4 == 0 and (row // 4 + column) % 2 == kind
                marks = [] if quick else [pytest.mark.slow]
                name = f"{case.name}-{shape}-{attention}"
                yield pytest.param(case, shape, attention, id=name, marks=marks)


def visual_tokens(case: Case, shown: tuple[str, str]) -> int:
    """Visual tokens of an input, given as (kind, variant)."""
    return int((case.tokens(*shown) == reference.TOKEN[shown[0]]).sum())


def sizes(case: Case) -> list[tuple[str, str]]:
    """The smallest and the largest kind of input of a family, as (kind, variant)."""
    shown = {part for layout in case.layouts for part in layout if not isinstance(part, int)}
    shown = {(kind, size) for kind, size in shown if kind == "image" or size not in case.frames}
    ordered = sorted(shown, key=lambda size: (visual_tokens(case, size), size))
    return [ordered[0], ordered[-1]]


def mixed_product() -> Iterator[Any]:
    """Families with inputs of several sizes x methods, a diagonal of it quick."""
    of_several = [
        case for case in CASES if len({visual_tokens(case, size) for size in sizes(case)}) == 2
    ]
    for row, case in enumerate(of_several):
        for column, name in enumerate(MIXED):
            quick = case.quick and row % len(MIXED) == column
            marks = [] if quick else [pytest.mark.slow]
            if (case.name, name) != ("gemma4_small", "dart"):  # 1.6e-4 beside the reference
                yield pytest.param(case, name, id=f"{case.name}-{name}", marks=marks)


MATRIX = list(product())


@pytest.mark.parametrize(("case", "shape", "attention"), MATRIX)
def test_prefill_and_decode_equal_a_full_forward(case: Case, shape: str, attention: str) -> None:
    """Each sample alone: tokens, logits, what each layer caches, and the report."""
    model, method = case.model(attention), method_of(case, shape)
    for sample in case.samples():
        with torch.no_grad():
            prefix = reference.reduce_prompt(model, case, method, case.budget, sample)
            ids, logits = reference.greedy(model, prefix, NEW)
            _, lengths = reference.forward(model, prefix)
        with compress(model, method, budget=case.budget) as c:
            out = answer(model, case.inputs([sample]))
        assert torch.equal(out.sequences[0, :-NEW], sample.ids)
        torch.testing.assert_close(torch.cat(out.logits), logits, **CLOSE)
        assert torch.equal(out.sequences[0, -NEW:], ids)
        for layer, length in zip(out.past_key_values.layers, lengths, strict=True):
            if hasattr(layer, "get_seq_length"):  # a state has no length
                assert layer.get_seq_length() == length + NEW - 1
                held = getattr(layer, "sliding_window", length + NEW) - 1
                assert layer.keys.shape[2] == min(length + NEW - 1, held)
        counts = [sum(layer) for layer in zip(*prefix.counts, strict=True)]
        assert c.report().reduced.layers == tuple(counts)
        assert c.report().budget == pytest.approx(sum(counts) / len(lengths) / len(prefix.counts))


@pytest.mark.parametrize(("case", "shape", "attention"), MATRIX)
def test_a_batch_gives_each_sample_what_it_gets_alone(
    case: Case, shape: str, attention: str
) -> None:
    """Different prompts and numbers of inputs, padded on either side."""
    model, samples = case.model(attention), case.samples()
    with compress(model, method_of(case, shape), budget=case.budget):
        together = answer(model, case.inputs(samples))
        alone = [answer(model, case.inputs([sample])) for sample in samples]
        with torch.no_grad():
            right = model(**case.inputs(samples, "right")).logits
    for row, single in enumerate(alone):
        for a, b in zip(together.logits, single.logits, strict=True):
            torch.testing.assert_close(a[row], b[0], **CLOSE)
        last = len(samples[row].ids) - 1
        torch.testing.assert_close(right[row, last], single.logits[0][0], **CLOSE)


@pytest.mark.parametrize(("case", "name"), list(mixed_product()))
def test_an_input_that_keeps_all_beside_one_that_is_reduced(case: Case, name: str) -> None:
    """Each input follows its own allocation, in either order, in one row or in two."""
    model, method = case.model(), MIXED[name]
    small, large = sizes(case)
    budget = visual_tokens(case, small) + 1
    samples = [case.sample((3, small, 5), seed=1), case.sample((2, large, 6), seed=2)]
    samples.append(case.sample((1, small, 2, large, 3), seed=3))
    with compress(model, method, budget=budget):
        for batch in (samples, samples[::-1]):
            together = torch.stack(answer(model, case.inputs(batch)).logits, 1)
            for row, sample in enumerate(batch):
                alone = torch.cat(answer(model, case.inputs([sample])).logits)
                torch.testing.assert_close(together[row], alone, **CLOSE)
    for row, sample in enumerate(samples[::-1]):
        with torch.no_grad():
            prefix = reference.reduce_prompt(model, case, method, budget, sample)
            _, logits = reference.greedy(model, prefix, NEW)
        torch.testing.assert_close(together[row], logits, **CLOSE)


@each_case
@pytest.mark.parametrize("side", ["left", "right"])
def test_keep_all_is_bit_equal(case: Case, side: str) -> None:
    model, given = case.model(), case.inputs(case.samples(), side)
    for name in ("duet", "pyramiddrop", "divprune"):
        with torch.no_grad():
            stock = model(**given).logits
            with compress(model, name, budget=1.0):
                assert torch.equal(model(**given).logits, stock)


@each_case
def test_keep_all_generates_bit_equal(case: Case) -> None:
    model, given = case.model(), case.inputs(case.samples())
    stock = answer(model, given)
    with compress(model, "duet", budget=1.0):
        kept = answer(model, given)
    assert all(torch.equal(a, b) for a, b in zip(kept.logits, stock.logits, strict=True))
    assert torch.equal(kept.sequences, stock.sequences)


@each_case
def test_leaves_the_model_as_it_was(case: Case) -> None:
    model, given = case.model(), case.inputs(case.samples()[:1])
    stock = answer(model, given)
    before = fingerprint(model)
    with compress(model, "duet", budget=0.3):
        answer(model, given)
        assert fingerprint(model) != before
    assert fingerprint(model) == before
    again = answer(model, given)
    assert all(torch.equal(a, b) for a, b in zip(again.logits, stock.logits, strict=True))


@each_beam_case
def test_beams(case: Case) -> None:
    """Several inputs a prompt among them."""
    model, samples = case.model(), case.samples()
    options = {"num_beams": 2, "return_dict_in_generate": False, "output_logits": False}
    with compress(model, method_of(case, "both"), budget=case.budget):
        together = answer(model, case.inputs(samples), **options)
        for row, sample in enumerate(samples):
            alone = answer(model, case.inputs([sample]), **options)
            assert torch.equal(together[row, -NEW:], alone[0, -NEW:])
