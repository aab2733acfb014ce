"""Muon's steps are orthogonal."""

from __future__ import annotations

import torch

from train.mini.muon import Muon, orthogonal


def test_muon_makes_steps_orthogonal() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((6, 10), (10, 6)):
        step = orthogonal(torch.randn(shape, generator=generator), steps=10)
        values = torch.linalg.svdvals(step)
        assert step.shape == shape and values.min() > 0.6 and values.max() < 1.3
    weight = torch.nn.Parameter(torch.zeros(4, 4))
    weight.grad = torch.diag(torch.tensor([1.0, 10.0, 100.0, 1000.0]))
    Muon([weight], lr=0.1).step()
    assert (weight.diagonal() < -0.05).sum() >= 2 and weight.abs().max() < 0.2
