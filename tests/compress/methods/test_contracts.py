"""Contracts of all methods: shapes, types, conservation, batches, bad input."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.methods import (
    DivPrune,
    Duet,
    FastVID,
    PruMerge,
    VCast,
    VisionZip,
    get_method,
    list_methods,
)
from compress.ops import windows
from compress.tokens import VisualTokens
from tests.compress.methods.cases import inputs, layer_tokens

PRE_LLM = [name for name in list_methods() if not get_method(name).in_llm_only]
IN_LLM = [name for name in list_methods() if get_method(name).in_llm_only]
RELEASED = [
    Duet(),
    Duet(variant="paper"),
    VCast(leftover="released"),
    VisionZip(merge="add", order="rank"),
    PruMerge(merge="released"),
    FastVID(merge="released"),
]
CONSERVING = {"duet": Duet(variant="paper")}  # in place of a default that conserves nothing
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
GRIDS = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))
QUICK = settings(max_examples=15, deadline=None, derandomize=True)


@pytest.mark.parametrize("name", PRE_LLM)
@given(grid=GRIDS, batch=st.integers(1, 3), dtype=DTYPES, data=st.data())
@QUICK
def test_contract(name, grid, batch, dtype, data):
    tokens = inputs(b=batch, grid=grid, seed=3, dtype=dtype)
    n = tokens.count
    keep = data.draw(st.integers(1, n), label="keep")
    method = CONSERVING.get(name) or get_method(name)
    out = method.reduce(tokens, keep).validate()
    assert out.features.shape == (batch, keep, tokens.features.shape[2])
    assert out.features.dtype == dtype
    again = method.reduce(tokens, keep)
    assert torch.equal(out.features, again.features)
    assert torch.equal(out.assign, again.assign)
    levels = 1 + len(out.more)
    if method.ordered:
        assert (out.anchor.diff(dim=1) > 0).all()
    if not method.repeats_anchors:
        assert (out.anchor.sort(dim=1).values.diff(dim=1) > 0).all()
    if keep == n:
        assert torch.equal(out.features, tokens.features)
        return
    # merging conserves the size-weighted sum
    x = tokens.features.double()
    kept = sum((level >= 0).double() for level in (out.assign, *out.more))
    total = (out.features.double() * out.size[..., None]).sum(1)
    eps = torch.finfo(dtype).eps
    slack = (out.features.double().abs() * out.size[..., None]).sum() * eps + 1e-5
    assert ((total - (x * kept[..., None]).sum(1)).abs() <= slack).all()
    assert (out.size.sum(1) == kept.sum(1)).all()
    assert kept.max() <= levels


@pytest.mark.parametrize("name", PRE_LLM)
@pytest.mark.parametrize("grid", [(1, 6, 6), (5, 2, 4)])
def test_each_input_of_a_batch_gets_what_it_gets_alone(name, grid):
    tokens = inputs(b=3, grid=grid, seed=5)
    whole = get_method(name).reduce(tokens, 11)
    for b in range(3):
        sample_fields = {
            k: v[b : b + 1] for k, v in vars(tokens).items() if isinstance(v, torch.Tensor)
        }
        alone = get_method(name).reduce(VisualTokens(grid=grid, **sample_fields), 11)
        part = whole.sample(b)
        assert torch.equal(part.anchor, alone.anchor)
        assert torch.equal(part.assign, alone.assign)
        torch.testing.assert_close(part.features, alone.features, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", RELEASED, ids=lambda m: type(m).__name__)
def test_released_variants_are_consistent(method):
    for keep in (1, 2, 7, 35):
        out = method.reduce(inputs(), keep).validate()
        assert out.count == keep
        if method.ordered:
            assert (out.anchor.diff(dim=1) > 0).all()


@pytest.mark.parametrize("name", PRE_LLM)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_or_zero_tokens(name, value):
    # a blank image: all tokens equal; zero-norm features and keys have no direction
    t = inputs(b=1)
    flat = {k: torch.full_like(v, value) for k, v in vars(t).items()
            if isinstance(v, torch.Tensor) and v.is_floating_point()}  # fmt: skip
    method = CONSERVING.get(name) or get_method(name)
    out = method.reduce(VisualTokens(grid=t.grid, **flat), 5).validate()
    assert torch.equal(out.features, torch.full_like(out.features, value))


@pytest.mark.parametrize("name", PRE_LLM)
def test_one_token(name):
    tokens = inputs(grid=(1, 1, 1))
    out = get_method(name).reduce(tokens, 1)
    assert torch.equal(out.features, tokens.features)


@pytest.mark.parametrize("name", PRE_LLM)
def test_bad_counts(name):
    for keep, error in ((0, ValueError), (37, ValueError), (2.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="keep"):
            get_method(name).reduce(inputs(), keep)


@pytest.mark.parametrize("name", PRE_LLM)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_cannot_be_ranked(name, bad):
    tokens = inputs()
    tokens.features[1, 3, 0] = bad
    with pytest.raises(ValueError, match="features holds NaN"):
        get_method(name).reduce(tokens, 5)


@pytest.mark.parametrize("name", PRE_LLM)
def test_missing_fields_are_named(name):
    method = get_method(name)
    for need in method.needs:
        tokens = replace(
            inputs(), **{need: None}, **({"text_query_mask": None} if need == "text_query" else {})
        )
        with pytest.raises(ValueError, match=f"needs {need}"):
            method.reduce(tokens, 5)
    for want in method.wants:
        lack = {"text_query_mask": None} if want == "text_query" else {}
        method.reduce(replace(inputs(), **{want: None}, **lack), 5).validate()


@pytest.mark.parametrize("name", IN_LLM)
def test_nothing_to_reduce_pre_llm(name):
    tokens = inputs()
    assert torch.equal(get_method(name).reduce(tokens, 36).features, tokens.features)
    with pytest.raises(ValueError, match="in the language model only"):
        get_method(name).reduce(tokens, 35)


@pytest.mark.parametrize("name", list_methods())
@given(n=st.integers(1, 24), dtype=DTYPES, data=st.data())
@QUICK
def test_contract_in_llm(name, n, dtype, data):
    count = data.draw(st.integers(0, n), label="count")
    full = layer_tokens(n)
    tokens = replace(full, hidden=full.hidden.to(dtype), text=full.text.to(dtype))
    out = get_method(name).reduce_in_llm(tokens, count).validate(tokens.size)
    assert out.features.shape == (2, count, 8)
    assert out.features.dtype == dtype
    assert (out.anchor.diff(dim=1) > 0).all()
    if count == n:
        assert torch.equal(out.features, tokens.hidden)
    with pytest.raises(ValueError, match="count"):
        get_method(name).reduce_in_llm(tokens, n + 1)


@pytest.mark.parametrize("name", PRE_LLM)
def test_gradient_reaches_what_is_kept(name):
    tokens = inputs(b=1)
    x = tokens.features.clone().requires_grad_()
    out = get_method(name).reduce(replace(tokens, features=x), 7)
    out.features.square().sum().backward()
    reached = x.grad.abs().sum(2) > 0
    kept_mask = torch.stack([out.assign, *out.more]).amax(0) >= 0
    assert torch.equal(reached, kept_mask)


@pytest.mark.parametrize("name", PRE_LLM)
def test_long_videos_in_windows(name, monkeypatch):
    monkeypatch.setattr(windows, "WINDOW", 20)
    tokens = inputs(b=2, grid=(7, 2, 4))
    out = get_method(name).reduce(tokens, 23).validate()
    assert out.count == 23
    if get_method(name).pairwise:
        assert (out.anchor[0] // 8).bincount(minlength=7).float().std() < 4


def test_windows_of_one_large_image(monkeypatch):
    monkeypatch.setattr(windows, "WINDOW", 10)
    for grid in ((1, 6, 6), (1, 1, 36), (1, 2, 18)):
        out = DivPrune().reduce(inputs(grid=grid), 12).validate()
        parts = (out.anchor[0] // 10).bincount()
        assert (parts > 0).all()


def test_autocast_does_not_touch_the_choice():
    tokens = inputs(grid=(1, 12, 12), d=32)
    plain = DivPrune().reduce(tokens, 40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = DivPrune().reduce(tokens, 40)
    assert torch.equal(plain.anchor, mixed.anchor)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", PRE_LLM)
def test_same_on_cuda(name):
    tokens = inputs(grid=(2, 8, 8))
    moved = {k: v.cuda() for k, v in vars(tokens).items() if isinstance(v, torch.Tensor)}
    here = get_method(name).reduce(tokens, 20)
    there = get_method(name).reduce(VisualTokens(grid=tokens.grid, **moved), 20)
    assert torch.equal(here.assign, there.assign.cpu())
    torch.testing.assert_close(here.features, there.features.cpu(), rtol=0, atol=1e-5)
