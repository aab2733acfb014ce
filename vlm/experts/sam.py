"""SAM's image encoder: 1024 pixels to 64 x 64 tokens (transformers).

Most layers attend within windows; keys and saliency come from one of those that attend to the
whole image, the last by default. Its logits carry SAM's decomposed relative positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import SamVisionModel

from vlm.attention import Call, Segments
from vlm.experts import hf
from vlm.experts.base import Encoder, ExpertError


def _attention(layer: Encoder, seen: dict[str, Call]) -> Segments:
    module = layer.attn
    rows, columns = seen["qkv"].output.shape[1:3]
    heads = module.num_attention_heads
    qkv = seen["qkv"].output.flatten(1, 2).unflatten(-1, (3, heads, -1))
    query, key, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)

    def bias(segments: slice, queries: slice) -> Tensor:
        index = torch.arange(query.shape[2], device=query.device)[queries]
        by_row = module.get_rel_pos(rows, rows, module.rel_pos_h)[index // columns]
        by_column = module.get_rel_pos(columns, columns, module.rel_pos_w)[index % columns]
        q = query[segments, :, queries]
        tall = torch.einsum("bnqc,qkc->bnqk", q, by_row)
        wide = torch.einsum("bnqc,qkc->bnqk", q, by_column)
        return (tall[..., :, None] + wide[..., None, :]).flatten(-2)

    return Segments(query, key, module.scale, bias=bias if module.use_rel_pos else None)


def _watch(layer: Encoder) -> dict[str, Encoder]:
    if layer.window_size:
        raise ExpertError(
            "scoring_layer is a SAM layer that attends within windows; expected one of the "
            "encoder's global_attn_indexes"
        )
    return {"qkv": layer.attn.qkv}


def _defaults(encoder: dict[str, Any]) -> dict[str, Any]:
    last_global = {"scoring_layer": max(encoder["global_attn_indexes"], default=-1)}
    return {"mean": hf.IMAGENET_MEAN, "std": hf.IMAGENET_STD, "fit": "pad", **last_global}


SAM = hf.family(
    "sam",
    SamVisionModel,
    run=lambda encoder, x: encoder(x).last_hidden_state.flatten(2).mT,
    layers=lambda encoder: encoder.vision_encoder.layers,
    tokens=lambda output: output.flatten(1, 2),
    width=lambda encoder, layer: (
        encoder.config.output_channels if layer == "last" else encoder.config.hidden_size
    ),
    watch=_watch,
    attention=_attention,
    defaults=_defaults,
)
