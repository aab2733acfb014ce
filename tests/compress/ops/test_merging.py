"""Pruning and merging: conservation, precision, gradients."""

from __future__ import annotations

import pytest
import torch

from compress import ops
from compress.ops import similarity


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


def test_medians_of_segments() -> None:
    """Lower medians, channel by channel; what goes nowhere counts nowhere."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=draw).double()
    assign = torch.cat([torch.arange(7), torch.randint(-1, 7, (33,), generator=draw)])
    expected = torch.stack([x[assign == row].median(0).values for row in range(7)])
    assert torch.equal(ops.segment_median(x, assign, 7), expected)
