"""Greedy selections: the same tokens in every way to select them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from compress.ops import greedy


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


INTERPRETED = """
import torch
from compress.ops import greedy, triton_greedy

g = torch.Generator().manual_seed(0)
table = torch.rand(2, 7, 9, generator=g)
table[..., 5] = table[..., 3]
assert torch.equal(triton_greedy.cover(table, 9), greedy.cover(table, 9, together=True))
for rank in (3, 12):
    x = torch.randn(2, 9, rank, generator=g)
    x[:, 4], x[1, 7] = x[:, 8], 0
    kernel = x @ x.mT
    assert torch.equal(triton_greedy.volume(kernel, 9), greedy.volume(kernel, 9))
assert triton_greedy.volume(torch.ones(1, 3, 3), 3).tolist() == [[0, 1, 2]]
assert triton_greedy.cover(torch.ones(1, 1, 1), 1).tolist() == [[0]]
"""


@pytest.mark.slow
def test_triton_kernels_select_the_same_in_the_interpreter():
    pytest.importorskip("triton")
    settings = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", INTERPRETED], env=settings, check=True, timeout=120)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_triton_kernels_select_the_same_on_cuda():
    kernels = pytest.importorskip("compress.ops.triton_greedy")
    table = torch.rand(3, 200, 300)
    assert torch.equal(kernels.cover(table.cuda(), 99).cpu(), greedy.cover(table, 99))
    x = torch.randn(3, 300, 400)
    kernel = x @ x.mT
    assert torch.equal(kernels.volume(kernel.cuda(), 99).cpu(), greedy.volume(kernel, 99))
