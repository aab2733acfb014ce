"""Similarities and distances: exactness and symmetry."""

from __future__ import annotations

import pytest
import torch

from compress import ops
from compress.ops import greedy, similarity


def test_cosine_of_zero_vector_is_zero():
    x = torch.tensor([[[0.0, 0.0], [3.0, 4.0]]])
    assert ops.cosine(x, x).tolist() == [[[0.0, 0.0], [0.0, 1.0]]]


def test_gram_in_tiles(monkeypatch):
    monkeypatch.setattr(similarity, "TILE", 4)
    x = torch.randn(2, 11, 5)
    torch.testing.assert_close(ops.gram(x), x @ x.mT)


def unsymmetric(monkeypatch, size=1e-6):
    """Matrix products that round (i, j) and (j, i) apart, as some kernels do."""
    product = torch.Tensor.__matmul__

    def rounded(a, b):
        out = product(a, b)
        step = torch.arange(out.shape[-2])[:, None] - torch.arange(out.shape[-1])
        return out + size * step.sign()

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)


@pytest.mark.parametrize("gpu", [False, True])
def test_tables_of_all_pairs_are_symmetric(monkeypatch, gpu):
    monkeypatch.setattr(similarity, "TILE", 4)
    monkeypatch.setattr(similarity, "on_gpu", lambda x: gpu)
    unsymmetric(monkeypatch)
    x = torch.randn(2, 11, 5)
    assert not torch.equal(x @ x.mT, (x @ x.mT).mT)
    for table in (ops.gram(x), ops.cosine(x, x), ops.squared_distances(x, x)):
        assert torch.equal(table, table.mT)


@pytest.mark.parametrize("step", [1, 3, 4, 20])
def test_rows_of_distances_agree(monkeypatch, step):
    unsymmetric(monkeypatch)
    x = torch.randn(2, 11, 5)
    parts = list(similarity.distance_rows(x, step))
    assert [rows.start for rows, _ in parts] == list(range(0, 11, step))
    table = torch.cat([part for _, part in parts], 1)
    assert torch.equal(table, table.mT)
    torch.testing.assert_close(table, torch.cdist(x, x).square() / 5, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [1e-6, -1e-6])
def test_nearest_of_each_other_tie(monkeypatch, size):
    unsymmetric(monkeypatch, size)
    # tokens 1 and 2 are each other's nearest; so are 0 and 3, farther apart
    x = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.1], [0.0, 1.0, 0.0], [1.0, 0.0, 0.9]]])
    assert greedy.farthest(x, 1).tolist() == [[0]]
    far = torch.tensor([[[0.0, 0.0], [5.0, 0.0], [5.0, 1.0], [0.0, 2.0]]])
    scores = ops.density_peaks(far, 2)
    apart = ops.squared_distances(far, far)
    assert apart[0, 1, 2] == apart[0, 2, 1]
    # equally dense: the lower index is the denser one, and the centre
    assert scores[0, 1] > scores[0, 2]
    assert ops.dpc_knn(far, 2, 2)[0].tolist() == [[1, 0]]
