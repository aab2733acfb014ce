"""Inputs of the method tests, and comparison with a reference."""

from __future__ import annotations

import numpy as np
import torch

from compress.tokens import LayerTokens, VisualTokens


def inputs(b=2, grid=(1, 6, 6), d=8, dk=5, q=4, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    n = grid[0] * grid[1] * grid[2]

    def draw(*shape):
        return torch.randn(*shape, generator=g).to(dtype)

    return VisualTokens(
        draw(b, n, d),
        grid,
        keys=draw(b, n, dk),
        saliency=torch.rand(b, n, generator=g).to(dtype),
        text_query=draw(b, q, d),
        text_query_mask=torch.ones(b, q, dtype=torch.bool),
        pre_projector=draw(b, n, d + 3),
        shallow_saliency=torch.rand(b, n, generator=g).to(dtype),
        attention=torch.rand(b, n, n, generator=g).to(dtype),
    )


# The fields of `VisualTokens` that are floating-point tensors.
TENSORS = (
    "features",
    "keys",
    "saliency",
    "text_query",
    "pre_projector",
    "shallow_saliency",
    "attention",
)


def sample(tokens, b):
    """Fields of sample b as float64 arrays, by name."""
    return {name: getattr(tokens, name)[b].double().numpy() for name in TENSORS}


def check(reduction, b, expected):
    """Same anchors, members and features as the reference, in the same order."""
    rows, features = expected
    assert reduction.anchor[b].tolist() == [a for a, _ in rows]
    assert [reduction.members(i, b).tolist() for i in range(len(rows))] == [m for _, m in rows]
    np.testing.assert_allclose(reduction.features[b].double().numpy(), features, atol=1e-6, rtol=0)
    reduction.validate()


def layer_tokens(n=20, d=8, seed=0, q=5, sizes=True):
    g = torch.Generator().manual_seed(seed)
    size = torch.randint(1, 4, (2, n), generator=g) if sizes else torch.ones(2, n).long()
    return LayerTokens(
        torch.randn(2, n, d, generator=g),
        size,
        torch.arange(0, 2 * n, 2).expand(2, n),
        (1, 5, 8),
        scores=torch.rand(2, n, generator=g),
        keys=torch.randn(2, n, 6, generator=g),
        text=torch.randn(2, q, d, generator=g),
        text_keys=torch.randn(2, q, 6, generator=g),
        text_mask=torch.ones(2, q, dtype=torch.bool),
    )


def check_in_llm(reduction, b, expected, size):
    rows, features = expected
    assert reduction.anchor[b].tolist() == [a for a, _ in rows]
    assert [reduction.members(i, b).tolist() for i in range(len(rows))] == [m for _, m in rows]
    np.testing.assert_allclose(reduction.features[b].double().numpy(), features, atol=1e-6, rtol=0)
    reduction.validate(size)
