"""Saliency comes from the layer whose output the projector gets, whichever the model says."""

from __future__ import annotations

import pytest
import torch

from compress import compress
from compress.methods import Duet
from tests import reference, tiny


@pytest.mark.parametrize("layer", [-1, -2, 1, 3])
def test_follows_the_feature_layer(layer: int) -> None:
    model = tiny.llava()
    model.config.vision_feature_layer = layer
    ids, image = tiny.prompt([3, 5]), tiny.pixels(1)
    back = layer if layer < 0 else layer - 1 - 3
    with torch.no_grad(), compress(model, Duet(), budget=16) as c:
        model(**tiny.batch([ids], image))
        kept = c.record.stages(0)[0][2].anchor[0]
        model.config.vision_feature_layer = back  # the reference counts from the back
        wanted = reference.reduce_prompt(model, Duet(), len(kept), ids, image)
    assert torch.equal(wanted.positions[wanted.image == 0] - 3, kept)
