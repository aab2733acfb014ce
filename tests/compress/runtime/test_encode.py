"""Saliency comes from the layer whose output the projector gets, whichever the model says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compress import compress
from compress.methods import Duet
from tests import reference
from tests.tiny import CASES

CASE = CASES[0]


@pytest.mark.parametrize("layer", [-1, -2, 1, 3])
def test_follows_the_feature_layer(layer: int) -> None:
    model: Any = CASE.fresh()
    model.config.vision_feature_layer = layer
    sample = CASE.samples()[0]
    back = layer if layer < 0 else layer - 1 - 3
    with torch.no_grad(), compress(model, Duet(), budget=16) as c:
        model(**CASE.inputs([sample]))
        kept = c.steps(0)[0][2].anchor[0]
    with torch.no_grad():
        seen = reference.encode(model, CASE, *sample.shown[0], layer=back)
        _, _, anchors = reference.reduce_input(
            model, CASE, Duet(), len(kept), seen, "image", sample.shown[0][1]
        )
    assert anchors == kept.tolist()
