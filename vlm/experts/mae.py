"""The encoder of a masked autoencoder, ViT-MAE, with nothing masked (transformers)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import ViTMAEModel

from vlm.experts import hf
from vlm.experts.base import Encoder


def _build(encoder: dict[str, Any]) -> Encoder:
    return hf.builder(ViTMAEModel)({**encoder, "mask_ratio": 0.0})


def _load(path: str) -> hf.Loaded:
    model, config, settings = hf.load_pretrained(ViTMAEModel, path)
    model.config.mask_ratio = 0.0
    return model, {**config, "mask_ratio": 0.0}, settings


def _run(encoder: Encoder, pixels: Tensor) -> Tensor:
    size = tuple(pixels.shape[-2:])
    rows, columns = hf.patch_grid(encoder.config.to_dict(), (size[0], size[1]))
    # The encoder sorts patches by this noise, random by default. Here it keeps their order.
    order = torch.arange(rows * columns, device=pixels.device, dtype=torch.float32)
    resized = size != hf.side(encoder.config.image_size)
    noise = order.expand(len(pixels), -1)
    return encoder(pixels, noise=noise, interpolate_pos_encoding=resized).last_hidden_state


MAE = hf.family(
    "mae",
    ViTMAEModel,
    build=_build,
    load=_load,
    run=_run,
    layers=lambda encoder: encoder.layers,
    prefix=lambda encoder: 1,
    **hf.watcher(lambda layer: layer.attention),
    resizable=True,
    defaults=lambda encoder: {"mean": hf.IMAGENET_MEAN, "std": hf.IMAGENET_STD},
)
