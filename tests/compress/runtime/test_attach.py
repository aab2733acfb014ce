"""Attaching to a stock LLaVA, besides the contracts of all families in `test_matrix.py`."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from compress import CompressionError, compress
from compress.methods import Duet, Random
from positions import V2PE
from tests.compress.common import CLOSE, NEW, answer, fingerprint
from tests.marks import each_case
from tests.tiny import CASES
from vlm.families import UnknownFamily

CASE = CASES[0]
SAMPLES = CASE.samples()


@pytest.fixture(scope="module")
def model() -> Any:
    return CASE.model()


def inputs(side: str = "left", only: int | None = None) -> dict[str, torch.Tensor]:
    return CASE.inputs(SAMPLES if only is None else SAMPLES[only : only + 1], side)


# ------------------------------------------------------------------ attaching


def test_an_error_of_the_users_leaves_no_trace(model: Any) -> None:
    answer(model, inputs())
    before = fingerprint(model)
    with pytest.raises(KeyError), compress(model, "duet", budget=16):
        model(**inputs())
        raise KeyError("the user's own")
    assert fingerprint(model) == before


def test_an_error_inside_a_forward_does_not_poison_the_next(model: Any) -> None:
    with compress(model, "duet", budget=16):
        right = answer(model, inputs()).sequences
        given = inputs()
        broken = given | {"pixel_values": given["pixel_values"][:3]}
        with pytest.raises(ValueError):
            model.generate(**broken, max_new_tokens=2)
        assert torch.equal(answer(model, inputs()).sequences, right)


def test_attaching_twice_is_refused(model: Any) -> None:
    with compress(model, "duet", budget=16), pytest.raises(CompressionError, match="already"):
        compress(model, "random", budget=8)
    c = compress(model, "random", budget=8)
    c.remove()
    c.remove()


def test_copies_and_pickles_are_refused_while_attached(model: Any) -> None:
    with compress(model, "duet", budget=16):
        for make in (copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match=r"remove\(\) first"):
                make(model)
    twin = copy.deepcopy(model)
    with compress(twin, "duet", budget=16):
        assert torch.equal(answer(twin, inputs(only=0)).sequences[0, :-NEW], SAMPLES[0].ids)


def test_another_hand_on_the_encoding_function_stays(model: Any) -> None:
    """Wrapped by someone else before and after: both are as they were when we leave."""
    core, seen = model.model, []
    stock = core.get_image_features

    def first(*args: Any, **kwargs: Any) -> Any:
        seen.append("first")
        return stock(*args, **kwargs)

    core.get_image_features = first
    try:
        c = compress(model, "duet", budget=16)
        model(**inputs(only=0))
        c.remove()
        assert core.get_image_features is first and seen == ["first"]
    finally:
        del core.get_image_features


# ------------------------------------------------------------------ batches


def test_samples_are_drawn_alike(model: Any) -> None:
    with compress(model, "duet", budget=16):
        drawn = []
        for _ in range(2):
            torch.manual_seed(3)
            drawn.append(answer(model, inputs(), do_sample=True, num_return_sequences=2).sequences)
        assert torch.equal(*drawn) and len(drawn[0]) == 6


def test_text_only_rows_and_batches(model: Any) -> None:
    text = CASE.sample([9], seed=5)
    mixed = CASE.inputs([SAMPLES[0], text])
    stock = answer(model, CASE.inputs([text]))
    with compress(model, "duet", budget=16):
        alone = answer(model, CASE.inputs([text]))
        both = answer(model, mixed)
    assert all(torch.equal(a, b) for a, b in zip(alone.logits, stock.logits, strict=True))
    for a, b in zip(both.logits, stock.logits, strict=True):
        torch.testing.assert_close(a[1], b[0], **CLOSE)


def test_without_a_cache(model: Any) -> None:
    with compress(model, Duet(layers=(), ratios=()), budget=16):
        cached = answer(model, inputs())
        bare = answer(model, inputs(), use_cache=False)
    for a, b in zip(cached.logits, bare.logits, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


def test_half_precision(model: Any) -> None:
    """bfloat16 follows float32 as closely as the stock model does."""
    half, given = CASE.fresh().bfloat16(), inputs()
    given16 = given | {"pixel_values": given["pixel_values"].bfloat16()}

    def gap(method: Any, budget: Any) -> float:
        with torch.no_grad(), compress(model, method, budget=budget):
            a = model(**given).logits
        with torch.no_grad(), compress(half, method, budget=budget):
            b = half(**given16).logits
        assert b.dtype == torch.bfloat16 and bool(b.isfinite().all())
        return float((a - b.float())[given["attention_mask"] == 1].abs().mean())

    # The same tokens are kept, so that selection is not what is compared.
    assert gap("uniform", 16) < 2 * gap("uniform", 64)


# ------------------------------------------------------------------ positions


def test_text_after_the_image_stands_where_it_stood(model: Any) -> None:
    seen: dict[str, torch.Tensor] = {}
    rotary = model.model.language_model.rotary_emb

    def look(module: Any, args: Any, kwargs: Any) -> None:
        seen.setdefault("positions", kwargs["position_ids"])

    for positions, expected in (("original", 74.0), ("compact", 36.0)):
        seen.clear()
        duet = Duet(variant="released")
        with torch.no_grad(), compress(model, duet, budget=16, positions=positions) as c:
            handle = rotary.register_forward_pre_hook(look, with_kwargs=True)
            model(**inputs(only=0))
            handle.remove()
        got = seen["positions"][0]
        assert got[-1] + 1 == expected and torch.equal(got[:3], torch.arange(3.0))
        if positions == "original":
            first = c.steps(0)[0][2].anchor[0]
            assert torch.equal(got[3:29], 3.0 + first)
            assert torch.equal(got[29:], torch.arange(67.0, 74.0))
        else:
            assert torch.equal(got, torch.arange(36.0))


@each_case
def test_a_scheme_in_place_of_original_positions(case: Any) -> None:
    """Inputs of each family can be planned; one position a token changes the answer."""
    model, given = case.model(), case.inputs(case.samples())
    logits = []
    for positions in ("original", V2PE(1 / 16)):
        with compress(model, "divprune", budget=case.budget, positions=positions) as c:
            logits.append(answer(model, given).logits[0])
            table = c.export()[0]["positions"]
    assert not torch.allclose(*logits, atol=1e-3)
    assert float(table[:, 0, 0].max() - table[:, 0, 0].min()) < 16


def test_the_schedule_is_what_was_planned() -> None:
    allocation = Duet(variant="released").allocate(64, 4, 16)
    assert allocation.counts == (26, 26, 13, 0)
    assert allocation.average == 16.25


def test_same_seed_same_result(model: Any) -> None:
    runs = []
    for seed in (1, 1, 2):
        with compress(model, Random(), budget=9, generator=torch.Generator().manual_seed(seed)):
            runs.append(answer(model, inputs()).logits[0])
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("budget", "kind"),
    [(0, ValueError), (-3, ValueError), (65, ValueError), (0.0, ValueError), (1.5, ValueError),
     (float("nan"), ValueError), ("64", TypeError), (True, TypeError), (None, TypeError)],
)  # fmt: skip
def test_bad_budgets(model: Any, budget: Any, kind: type[Exception]) -> None:
    before = fingerprint(model)
    with pytest.raises(kind, match="budget"):
        compress(model, "duet", budget=budget)
    assert fingerprint(model) == before


def test_bad_names(model: Any) -> None:
    with pytest.raises(ValueError, match=r"'duett'.*known methods: .*duet"):
        compress(model, "duett", budget=8)
    with pytest.raises(ValueError, match="positions"):
        compress(model, "duet", budget=8, positions="moved")
    with pytest.raises(UnknownFamily, match=r"Linear.*known.*llava.*add-a-family"):
        compress(torch.nn.Linear(2, 2), "duet", budget=8)


def test_what_a_family_was_not_written_for() -> None:
    model = CASE.fresh(depth=2)
    model.config.vision_feature_select_strategy = "full"
    with pytest.raises(UnknownFamily, match=r"'full'.*expected 'default'"):
        compress(model, "duet", budget=8)
