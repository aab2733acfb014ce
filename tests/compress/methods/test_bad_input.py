"""Bad input gets one clear error that names the argument; odd input does what is documented."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress import reduce
from compress.methods import METHODS, get_method, list_methods
from compress.tokens import VisualTokens
from tests.compress.methods.cases import TENSORS, inputs
from tests.compress.methods.test_contracts import GRIDS, PRE_LLM

WIDE = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
QUICK = settings(max_examples=15, deadline=None, derandomize=True)


def bare(tokens):
    """Arguments of `reduce` for these tokens, features apart."""
    names = (*TENSORS[1:], "text_query_mask", "grid")
    return tokens.features, {name: getattr(tokens, name) for name in names}


@pytest.mark.parametrize("name", PRE_LLM)
@given(grid=GRIDS, data=st.data())
@QUICK
def test_reduce_takes_counts_and_fractions(name, grid, data):
    x, others = bare(inputs(b=1, grid=grid))
    n = x.shape[1]
    count = data.draw(st.integers(1, n) | st.floats(1e-6, 1.0), label="count")
    kept = count if isinstance(count, int) else max(1, round(count * n))
    assert reduce(x, name, count, **others).validate().count == kept


@pytest.mark.parametrize("name", list_methods())
@given(data=st.data())
@QUICK
def test_counts_that_cannot_be(name, data):
    x, others = bare(inputs(grid=(1, 2, 3)))
    outside = st.integers(7, 10**6) | st.integers(-5, 0)
    fractions = st.floats(1.0, exclude_min=True) | st.floats(max_value=0.0)
    count = data.draw(outside | fractions | st.just(float("nan")), label="count")
    with pytest.raises(ValueError, match="count is"):
        reduce(x, name, count, **others)
    wrong = data.draw(st.sampled_from(["4", None, True, [4], 1j]), label="wrong")
    with pytest.raises(TypeError, match="count must be"):
        reduce(x, name, wrong, **others)


@pytest.mark.parametrize("name", list_methods())
@given(grid=GRIDS, extra=st.integers(1, 4), data=st.data())
@QUICK
def test_grid_that_does_not_match(name, grid, extra, data):
    x, others = bare(inputs(b=1, grid=grid))
    axis = data.draw(st.integers(0, 2))
    wrong = tuple(length + extra * (i == axis) for i, length in enumerate(grid))
    with pytest.raises(ValueError, match="grid"):
        reduce(x, name, 1, **others | {"grid": wrong})
    for short in ((x.shape[1],), (0, 1, x.shape[1]), (1, 1, 1, x.shape[1])):
        with pytest.raises(ValueError, match="grid"):
            reduce(x, name, 1, **others | {"grid": short})


@pytest.mark.parametrize("name", PRE_LLM)
@given(data=st.data())
@QUICK
def test_values_that_cannot_be_ranked(name, data):
    tokens = inputs(grid=(2, 2, 3))
    field = data.draw(st.sampled_from(TENSORS), label="field")
    x = getattr(tokens, field)
    place = data.draw(st.integers(0, x.numel() - 1), label="place")
    x.flatten()[place] = data.draw(st.sampled_from([torch.nan, torch.inf, -torch.inf]))
    with pytest.raises(ValueError, match=f"{field} holds NaN"):
        get_method(name).reduce(tokens, 5)


@pytest.mark.parametrize("name", PRE_LLM)
@given(data=st.data())
@QUICK
def test_vectors_of_no_length(name, data):
    tokens = inputs(grid=(2, 3, 3))
    lost = data.draw(st.lists(st.booleans(), min_size=18, max_size=18).map(torch.tensor))
    for field in data.draw(st.sets(st.sampled_from(TENSORS[:-1])), label="fields"):
        value = getattr(tokens, field)
        if field == "text_query":
            value.zero_()
        else:
            value[:, lost] = 0
    keep = data.draw(st.integers(1, 17), label="keep")
    out = get_method(name).reduce(tokens, keep).validate()
    assert out.features.isfinite().all()


@pytest.mark.parametrize("name", PRE_LLM)
@given(grid=GRIDS, kinds=st.lists(st.sampled_from(WIDE), min_size=7, max_size=7))
@QUICK
def test_every_field_of_a_type_of_its_own(name, grid, kinds):
    tokens = inputs(grid=grid)
    cast = {f: getattr(tokens, f).to(kind) for f, kind in zip(TENSORS, kinds, strict=True)}
    keep = max(1, tokens.count // 3)
    out = get_method(name).reduce(replace(tokens, **cast), keep).validate()
    assert out.features.dtype == kinds[0]
    assert out.features.isfinite().all()


@pytest.mark.parametrize("field", [*TENSORS[1:], "text_query_mask"])
def test_fields_on_another_device(field):
    tokens = inputs()
    with pytest.raises(ValueError, match=f"{field} is on meta, but features is on cpu"):
        replace(tokens, **{field: getattr(tokens, field).to("meta")})


@pytest.mark.parametrize("name", list_methods())
def test_options_of_the_wrong_kind(name):
    method = METHODS[name]
    with pytest.raises(TypeError, match="nonsense"):
        method(nonsense=1)
    for option in fields(method):
        for wrong in (float("nan"), float("inf"), ["x"], object()):
            with pytest.raises((TypeError, ValueError), match=option.name):
                method(**{option.name: wrong})
        if option.type != "bool" and not str(option.type).startswith(("str", "bool")):
            with pytest.raises((TypeError, ValueError), match=option.name):
                method(**{option.name: "nonsense"})


def test_reduce_names_what_it_does_not_know():
    x = torch.randn(2, 9, 4)
    assert reduce(x, "random", 0.5).features.shape == (2, 4, 4)
    with pytest.raises(ValueError, match="known methods"):
        reduce(x, "nonsense", 4)
    with pytest.raises(ValueError, match="Duet needs"):
        reduce(x, "duet", 4)
    with pytest.raises(TypeError, match="method"):
        reduce(x, 3, 4)
    with pytest.raises(TypeError, match="features must be floating point"):
        reduce(x.long(), "random", 4)
    with pytest.raises(TypeError, match="keys must be a tensor"):
        reduce(x, "random", 4, keys=[1])
    for shape in ((9, 4), (2, 9, 4, 1)):
        with pytest.raises(ValueError, match="features must be a tensor"):
            reduce(torch.zeros(shape), "random", 4)
    with pytest.raises(ValueError, match="no tokens"):
        VisualTokens(torch.zeros(1, 0, 4), (1, 1, 1))
