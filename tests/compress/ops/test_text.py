"""Text tokens that rank visual tokens."""

from __future__ import annotations

import math

import torch

from compress import ops


def test_text_raters():
    visual = torch.tensor([[[10.0, 0.0, 0.0]]])
    text = torch.eye(3)[None]
    assert ops.text_raters(text, visual).tolist() == [[True, False, False]]
    mask = torch.tensor([[False, True, True]])
    assert ops.text_raters(text, visual, mask).tolist() == [[False, True, True]]
    none = ops.text_raters(text[:, :0], visual)
    assert none.shape == (1, 0)


def test_against_a_prior_worked_by_hand() -> None:
    attention = torch.tensor([[0.2, 0.1, 0.1], [0.3, 0.1, 0.2]])
    prior = torch.tensor([[0.1, 0.2, 0.1], [0.0, 0.0, 0.0]])
    scores = ops.against_prior(attention, prior)
    expected = [0.5 * math.log(0.5 / 0.25), 0.25 * math.log(0.25 / 0.5), 0.0]
    torch.testing.assert_close(scores[0], torch.tensor(expected))
    assert scores[1].argsort(descending=True).tolist() == [0, 2, 1]
