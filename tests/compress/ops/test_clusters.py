"""DPC-KNN in parts, among some tokens, and with ties."""

from __future__ import annotations

import torch

from compress import ops
from compress.ops import similarity


def test_density_peaks_in_chunks(monkeypatch):
    x = torch.randn(2, 30, 4)
    whole = ops.dpc_knn(x, 7, 3)
    monkeypatch.setattr(similarity, "PAIRS", 60)
    parts = ops.dpc_knn(x, 7, 3)
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])


def test_density_peaks_among_some_tokens():
    x = torch.randn(3, 12, 4, generator=torch.Generator().manual_seed(0))
    among = torch.ones(3, 12, dtype=torch.bool)
    among[0, [2, 5]] = among[1, [0, 1, 11]] = False
    scores = ops.density_peaks(x, 3, among)
    for b in range(3):
        alone = ops.density_peaks(x[b : b + 1, among[b]], 3)[0]
        torch.testing.assert_close(scores[b, among[b]], alone)
        assert (scores[b, ~among[b]] == -torch.inf).all()
