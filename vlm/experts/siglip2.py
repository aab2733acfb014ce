"""SigLIP 2's vision encoder of variable shape, NaFlex (transformers).

The encoder takes patches and the shape of their grid. Here all images of a batch have one shape.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Siglip2VisionModel

from vlm.experts import hf
from vlm.experts.base import Encoder, Pair


def _run(encoder: Encoder, pixels: Tensor) -> Tensor:
    p = encoder.config.patch_size
    batch, _, height, width = pixels.shape
    rows, columns = height // p, width // p
    # Channels last within a patch, as in Siglip2ImageProcessor.
    patches = pixels[:, :, : rows * p, : columns * p].reshape(batch, 3, rows, p, columns, p)
    patches = patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)
    shapes = torch.tensor([[rows, columns]]).expand(batch, 2)
    mask = torch.ones(batch, rows * columns, dtype=torch.long, device=pixels.device)
    return encoder(patches, mask, shapes).last_hidden_state


def _native(encoder: dict[str, Any]) -> Pair:
    side = int(encoder["num_patches"] ** 0.5) * encoder["patch_size"]
    return side, side


SIGLIP2 = hf.family(
    "siglip2",
    Siglip2VisionModel,
    run=_run,
    native=_native,
    layers=lambda encoder: encoder.encoder.layers,
    **hf.watcher(lambda layer: layer.self_attn),
    resizable=True,
)
