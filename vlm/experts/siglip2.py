"""SigLIP 2's vision tower of variable shape, NaFlex (transformers).

The tower takes patches and the shape that they lie in; here every image of a batch has one shape.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Siglip2VisionModel

from vlm.experts import hf
from vlm.experts.base import Pair, Tower


def _run(tower: Tower, pixels: Tensor) -> Tensor:
    p = tower.config.patch_size
    batch, _, height, width = pixels.shape
    rows, columns = height // p, width // p
    # Channels last within a patch, as in Siglip2ImageProcessor.
    patches = pixels[:, :, : rows * p, : columns * p].reshape(batch, 3, rows, p, columns, p)
    patches = patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)
    shapes = torch.tensor([[rows, columns]]).expand(batch, 2)
    mask = torch.ones(batch, rows * columns, dtype=torch.long, device=pixels.device)
    return tower(patches, mask, shapes).last_hidden_state


def _native(tower: dict[str, Any]) -> Pair:
    side = int(tower["num_patches"] ** 0.5) * tower["patch_size"]
    return side, side


SIGLIP2 = hf.family(
    "siglip2",
    Siglip2VisionModel,
    run=_run,
    native=_native,
    layers=lambda tower: tower.encoder.layers,
    **hf.watcher(lambda layer: layer.self_attn),
    resizable=True,
)
