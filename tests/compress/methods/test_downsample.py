"""Down-sampling: what the runtime asks of the method, and what it is on bare features."""

from __future__ import annotations

import pytest
import torch

from compress import reduce
from compress.methods import Downsample, Duet, list_methods
from compress.methods import get_method as method


def test_on_bare_features_it_is_pooling() -> None:
    features = torch.randn(2, 36, 5, generator=torch.Generator().manual_seed(0))
    pooled, small = (reduce(features, m, 9, grid=(6, 6)) for m in ("pool", "downsample"))
    assert torch.equal(pooled.features, small.features)
    assert torch.equal(pooled.assign, small.assign)


def test_what_the_vision_encoder_is_given() -> None:
    assert [name for name in list_methods() if method(name).resizes_input] == ["downsample"]
    assert Downsample().input_side((1, 6, 6), 9) == 3
    blocks = Downsample().input_blocks((1, 6, 6), 9).reshape(6, 6)
    assert blocks[::2, ::2].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    for grid in ((2, 6, 6), (1, 3, 12)):
        with pytest.raises(ValueError, match="square grid"):
            Downsample().input_side(grid, 9)
    with pytest.raises(NotImplementedError, match="Duet"):
        Duet().input_side((1, 6, 6), 9)
