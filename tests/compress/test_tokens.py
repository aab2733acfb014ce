"""Visual tokens and their reductions."""

from __future__ import annotations

import pytest
import torch

from compress import ops
from compress.tokens import Reduction, VisualTokens


def test_reduction_composes():
    x = torch.randn(1, 6, 2)
    first = ops.merge(x, torch.tensor([[0, 2, 5]]), torch.tensor([[0, 0, 1, -1, 2, 2]]))
    second = ops.merge(first.features, torch.tensor([[1, 2]]), torch.tensor([[1, 0, 1]]),
                       size=first.size)  # fmt: skip
    both = first.then(second).validate()
    assert both.assign.tolist() == [[1, 1, 0, -1, 1, 1]]
    assert both.anchor.tolist() == [[2, 5]]
    assert both.size.tolist() == [[1, 4]]
    torch.testing.assert_close(both.features[0, 1], x[0, [0, 1, 4, 5]].mean(0))
    assert torch.equal(both.unmerge()[0, 3], torch.zeros(2))
    assert torch.equal(both.unmerge()[0, 1], both.features[0, 1])
    assert both.unmerge(both.size).tolist() == [[4, 4, 1, 0, 4, 4]]


def test_reduction_validate_sees_errors():
    x = torch.randn(1, 4, 2)
    good = ops.prune(x, torch.tensor([[0, 2]])).validate()
    for bad in (
        Reduction(good.features, good.assign + 1, good.anchor, good.size),
        Reduction(good.features, good.assign, good.anchor + 1, good.size),
        Reduction(good.features, good.assign, good.anchor, good.size + 1),
        Reduction(good.features[:, :1], good.assign, good.anchor, good.size),
    ):
        with pytest.raises(ValueError):
            bad.validate()


def test_visual_tokens_name_the_bad_field():
    x = torch.randn(2, 6, 4)
    for field, value in (
        ("keys", torch.randn(2, 5, 3)),
        ("saliency", torch.randn(2, 6, 1)),
        ("text_query", torch.randn(2, 3, 5)),
        ("pre_projector", torch.randn(1, 6, 4)),
        ("attention", torch.randn(2, 6, 5)),
    ):
        with pytest.raises(ValueError, match=field):
            VisualTokens(x, (1, 2, 3), **{field: value})
    for grid in ((1, 2, 2), (0, 2, 3), (2, 3)):
        with pytest.raises(ValueError, match="grid"):
            VisualTokens(x, grid)
    with pytest.raises(TypeError, match="features"):
        VisualTokens(x.long(), (1, 2, 3))


def test_check_finite():
    large = torch.full((1, 4, 2), 3e38)
    VisualTokens(large, (1, 2, 2)).check_finite()  # the sum overflows, the values are finite
    half = torch.full((1, 4, 2), 6e4, dtype=torch.float16)
    VisualTokens(half, (1, 2, 2)).check_finite()
    half[0, 3, 1] = torch.nan
    with pytest.raises(ValueError, match="features holds NaN"):
        VisualTokens(half, (1, 2, 2)).check_finite()
    with pytest.raises(ValueError, match="saliency holds NaN"):
        VisualTokens(large, (1, 2, 2), saliency=torch.tensor([[0, 1, torch.inf, 2]])).check_finite()


def test_grid_cells_in_raster_order():
    cells = VisualTokens(torch.zeros(1, 12, 1), (2, 2, 3)).grid_cells
    assert cells.dtype == torch.int64
    assert cells[[0, 1, 3, 6, 11]].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0],
                                                [1, 1, 2]]  # fmt: skip


def test_fold_cuts_attention_by_frame():
    table = torch.rand(2, 3, 4, 4)
    tokens = VisualTokens(torch.zeros(2, 12, 1), (3, 2, 2), attention=table)
    attention = tokens.fold([4, 8], (1, 2, 2)).attention
    assert torch.equal(attention, torch.stack([table[0, 1], table[0, 2], table[1, 1], table[1, 2]]))
    two = tokens.fold(torch.tensor([4]), (2, 2, 2)).attention
    assert torch.equal(two, table[:, 1:])
    with pytest.raises(ValueError, match="attention is given frame by frame"):
        tokens.fold([0], (1, 1, 2))
    with pytest.raises(ValueError, match="attention has shape"):
        VisualTokens(torch.zeros(2, 12, 1), (3, 2, 2), attention=table[:, :2])


def test_finite_sums():
    tokens = VisualTokens(torch.ones(1, 4, 2), (1, 2, 2), saliency=torch.ones(1, 4))
    assert tokens.finite_sums().tolist() == [8.0, 4.0]
    tokens.saliency[0, 1] = torch.nan
    assert tokens.finite_sums().isfinite().tolist() == [True, False]
