"""Inputs without text: the part of a method that reads text is left out, alone and in a batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from compress.methods import (
    DART,
    CDPruner,
    DivPrune,
    Duet,
    Foveate,
    MMTok,
    SparseVLM,
    get_method,
    list_methods,
)
from compress.ops import greedy
from tests.compress.methods.cases import inputs, layer_tokens

READERS = [name for name in list_methods() if "text_query" in get_method(name).wants]


def without(tokens, width):
    """The first input, with no text: none given, of no width, or all padding."""
    sample = tokens.batch(slice(0, 1))
    if width is None:
        return replace(sample, text_query=None, text_query_mask=None)
    mask = torch.zeros(1, width, dtype=torch.bool)
    return replace(sample, text_query=sample.text_query[:, :width], text_query_mask=mask)


def test_readers_are_known():
    assert READERS == ["cdpruner", "foveate", "mmtok"]
    assert not [name for name in list_methods() if "text_query" in get_method(name).needs]


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("name", READERS)
def test_no_text_is_the_same_alone_and_in_a_batch(name, gpu, monkeypatch):
    monkeypatch.setattr(greedy.similarity, "on_gpu", lambda x: gpu)
    tokens = inputs(b=3, seed=2)
    mask = tokens.text_query_mask.clone()
    mask[0] = False
    batch = get_method(name).reduce(replace(tokens, text_query_mask=mask), 9).validate()
    full = get_method(name).reduce(tokens, 9)
    assert torch.equal(batch.assign[1:], full.assign[1:])
    assert not torch.equal(batch.assign[0], full.assign[0])
    for width in (None, 0, 1, 4):
        alone = get_method(name).reduce(without(tokens, width), 9)
        assert torch.equal(alone.assign, batch.assign[:1])
        assert torch.equal(alone.features, batch.features[:1])
        assert alone.features.isfinite().all()


def test_what_is_left_without_text():
    tokens = inputs(seed=2)
    bare = replace(tokens, text_query=None, text_query_mask=None)
    off = Foveate(relevant=0).reduce(tokens, 9)
    assert torch.equal(Foveate().reduce(bare, 9).assign, off.assign)
    x = tokens.features
    alike = x * (1e-6 / x.norm(dim=2, keepdim=True))  # equal relevance everywhere
    diverse = greedy.span(alike, 9).sort(dim=1).values
    assert torch.equal(CDPruner().reduce(bare, 9).anchor, diverse)
    assert torch.equal(CDPruner(negate=True).reduce(bare, 9).anchor, diverse)
    assert not torch.equal(diverse, DivPrune().reduce(bare, 9).anchor)
    assert not torch.equal(MMTok().reduce(bare, 9).anchor, MMTok().reduce(tokens, 9).anchor)


@pytest.mark.parametrize("width", [None, 0, 4])
@pytest.mark.parametrize("name", READERS)
def test_gradients_without_text(name, width):
    tokens = without(inputs(), width)
    x = tokens.features.clone().requires_grad_()
    query = tokens.text_query
    if query is not None:
        tokens = replace(tokens, text_query=query.clone().requires_grad_())
    out = get_method(name).reduce(replace(tokens, features=x), 7)
    out.features.square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0


@pytest.mark.parametrize("method", [Duet(), SparseVLM()])
def test_salient_rows_without_text(method):
    text, visual = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    assert method.salient_rows(text[:, :0], visual).shape == (2, 0)
    mask = torch.tensor([[False] * 3, [True, True, False]])
    rows = method.salient_rows(text, visual, mask)
    assert not rows[0].any() and rows[1].any() and not rows[1, 2]
    assert torch.equal(rows[1:, :2], method.salient_rows(text[1:, :2], visual[1:]))


@pytest.mark.parametrize("method", [DART(), SparseVLM()])
def test_in_llm_without_text(method):
    full = layer_tokens(q=4)
    mask = full.text_mask.clone()
    mask[0] = False
    both = method.reduce_in_llm(replace(full, text_mask=mask), 12).validate(full.size)
    bare = replace(
        full, text=full.text[:, :0], text_keys=full.text_keys[:, :0], text_mask=mask[:, :0]
    )
    none = method.reduce_in_llm(bare, 12).validate(full.size)
    assert torch.equal(both.anchor[0], none.anchor[0])
    assert none.features.isfinite().all()
