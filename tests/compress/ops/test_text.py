"""Text tokens that rank visual tokens."""

from __future__ import annotations

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
