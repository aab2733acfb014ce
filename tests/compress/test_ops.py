"""The operations alone: ties, exactness, conservation, gradients."""

from __future__ import annotations

import pytest
import torch

from compress import ops
from compress.ops import greedy, similarity
from compress.tokens import Reduction, VisualTokens


def test_rank_breaks_ties_by_index():
    scores = torch.tensor([[1.0, 3.0, 3.0, 0.0, 3.0]])
    assert ops.rank(scores).tolist() == [[1, 2, 4, 0, 3]]
    assert ops.top(scores, 2).tolist() == [[1, 2]]


def test_others_ascend():
    assert ops.others(torch.tensor([[3, 0], [1, 4]]), 5).tolist() == [[1, 2, 4], [0, 2, 3]]


def test_spread():
    assert ops.spread(9, 3, torch.device("cpu")).tolist() == [1, 4, 7]
    assert ops.spread(5, 5, torch.device("cpu")).tolist() == [0, 1, 2, 3, 4]


def test_cosine_of_zero_vector_is_zero():
    x = torch.tensor([[[0.0, 0.0], [3.0, 4.0]]])
    assert ops.cosine(x, x).tolist() == [[[0.0, 0.0], [0.0, 1.0]]]


def test_merge_worked_by_hand():
    x = torch.tensor([[[1.0], [2.0], [4.0], [8.0]]])
    out = ops.merge(x, torch.tensor([[3, 0]]), torch.tensor([[1, 0, -1, 0]]))
    assert out.anchor.tolist() == [[0, 3]]
    assert out.assign.tolist() == [[0, 1, -1, 1]]
    assert out.size.tolist() == [[1, 2]]
    assert out.features.tolist() == [[[1.0], [5.0]]]
    heavy = ops.merge(x, torch.tensor([[3]]), torch.zeros(1, 4, dtype=torch.int64),
                      size=torch.tensor([[1, 1, 1, 5]]))  # fmt: skip
    assert heavy.features.item() == pytest.approx((1 + 2 + 4 + 40) / 8)
    assert heavy.size.item() == 8
    add = ops.merge(x, torch.tensor([[3, 0]]), torch.tensor([[1, 0, 0, 0]]), rule="add",
                    raster=False)  # fmt: skip
    assert add.features.tolist() == [[[11.0], [1.0]]]
    assert add.anchor.tolist() == [[3, 0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_merge_accumulates_in_float32(dtype):
    x = torch.ones(1, 4097, 2, dtype=dtype)
    x[:, 1:] *= 1.0 + 2.0**-7
    out = ops.merge(x, torch.tensor([[0]]), torch.zeros(1, 4097, dtype=torch.int64))
    exact = x.double().mean(1)
    assert torch.equal(out.features[:, 0], exact.to(dtype))


def test_merge_leaves_single_members_alone():
    x = torch.randn(2, 7, 3)
    index = torch.arange(7).expand(2, 7)
    out = ops.merge(x, index, index, size=torch.full((2, 7), 3))
    assert torch.equal(out.features, x)


def test_merge_gradient_reaches_all_members():
    x = torch.randn(1, 5, 2, requires_grad=True)
    ops.merge(x, torch.tensor([[1]]), torch.tensor([[0, 0, -1, 0, 0]])).features.sum().backward()
    assert x.grad[0, :, 0].tolist() == [0.25, 0.25, 0.0, 0.25, 0.25]


def test_merge_rejects_unknown_rule():
    with pytest.raises(ValueError, match="rule"):
        ops.merge(torch.ones(1, 2, 1), torch.tensor([[0]]), torch.zeros(1, 2).long(), rule="max")


def test_to_nearest_in_chunks(monkeypatch):
    x, centres = torch.randn(2, 23, 4), torch.tensor([[3, 9, 1], [0, 22, 5]])
    members = torch.tensor([[2, 4, 7, 11], [1, 2, 3, 4]])
    whole, some = ops.to_nearest(x, centres), ops.to_nearest(x, centres, members)
    monkeypatch.setattr(similarity, "PAIRS", 1)
    assert torch.equal(ops.to_nearest(x, centres), whole)
    assert torch.equal(ops.to_nearest(x, centres, members), some)
    assert (some >= 0).sum(1).tolist() == [7, 7]


def test_cover_together_and_one_by_one_agree():
    table = torch.rand(3, 40, 50)
    table[..., 7] = table[..., 3]  # a tie, and then a duplicate that gains nothing
    full = greedy.cover(table, 50, together=True)
    assert torch.equal(greedy.cover(table, 50, together=False), full)
    assert (full.sort(dim=1).values == torch.arange(50)).all()
    best = table.sum(1).argmax(1)
    assert torch.equal(full[:, 0], best)


def test_volume_spans():
    # a token, its double, and one at a right angle: the double comes last
    x = torch.tensor([[[3.0, 0.0], [6.0, 0.0], [0.0, 1.0]]])
    assert greedy.volume(x @ x.transpose(1, 2), 3).tolist() == [[1, 2, 0]]


def test_volume_takes_what_is_left_not_what_was():
    # after the first, a long vector with 4% left beats a short one at a right angle
    x = torch.tensor([[[9.0, 0.0, 0.0], [4.8, 1.0, 0.0], [0.0, 0.0, 0.9]]])
    assert greedy.volume(x @ x.transpose(1, 2), 3).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("rank", [3, 40])
@pytest.mark.parametrize(("together", "pool"), [(True, 0), (False, 2), (False, 8), (False, 99)])
def test_span_is_volume_without_a_table(rank, together, pool):
    g = torch.Generator().manual_seed(rank)
    x = torch.randn(2, 30, rank, generator=g) * torch.rand(2, 30, 1, generator=g)
    x[:, 4] = x[:, 9]  # the second of the two comes after all others
    x[1, 7] = 0
    table = x.double() @ x.double().mT
    assert torch.equal(greedy.span(x, 30, together, pool), greedy.volume(table, 30))
    blank = torch.ones(1, 6, 2)
    assert greedy.span(blank, 6, together, pool).tolist() == [[0, 1, 2, 3, 4, 5]]


def test_gram_in_tiles(monkeypatch):
    monkeypatch.setattr(similarity, "TILE", 4)
    x = torch.randn(2, 11, 5)
    torch.testing.assert_close(ops.gram(x), x @ x.mT)


def test_density_peaks_in_chunks(monkeypatch):
    x = torch.randn(2, 30, 4)
    whole = ops.dpc_knn(x, 7, 3)
    monkeypatch.setattr(similarity, "PAIRS", 60)
    parts = ops.dpc_knn(x, 7, 3)
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])


def test_by_quota():
    scores = torch.tensor([[[1.0, 5.0, 3.0], [9.0, 8.0, 7.0], [0.0, -torch.inf, 2.0]]])
    quota = torch.tensor([[0.2, 3.6, 1.2]])
    assert sorted(ops.by_quota(scores, quota, 5)[0].tolist()) == [1, 3, 4, 5, 8]
    few = ops.by_quota(scores, quota, 2)  # fewer than frames: no frame is sure of one
    assert few.tolist() == [[3, 4]]
    full = ops.by_quota(scores, quota, 9)[0].tolist()
    assert full[-1] == 7


def test_text_raters():
    visual = torch.tensor([[[10.0, 0.0, 0.0]]])
    text = torch.eye(3)[None]
    assert ops.text_raters(text, visual).tolist() == [[True, False, False]]
    mask = torch.tensor([[False, True, True]])
    assert ops.text_raters(text, visual, mask).tolist() == [[False, True, True]]
    none = ops.text_raters(text[:, :0], visual)
    assert none.shape == (1, 0)


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


def test_cells_in_raster_order():
    cells = VisualTokens(torch.zeros(1, 12, 1), (2, 2, 3)).grid_cells
    assert cells.dtype == torch.int64
    assert cells[[0, 1, 3, 6, 11]].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0],
                                                [1, 1, 2]]  # fmt: skip
