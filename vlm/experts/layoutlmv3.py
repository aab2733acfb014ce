"""The visual side of LayoutLMv3, a document encoder: its layers, run on pixels only."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import LayoutLMv3Model

from vlm.attention import Call, Segments, split_heads
from vlm.experts import hf
from vlm.experts.base import Encoder


def _build(encoder: dict[str, Any]) -> Encoder:
    # Without the word and box embeddings, which pixels never reach.
    return hf.builder(LayoutLMv3Model)({**encoder, "text_embed": False, "visual_embed": True})


def _load(path: str) -> hf.Loaded:
    model, config, settings = hf.load_pretrained(LayoutLMv3Model, path)
    del model.embeddings
    model.config.text_embed = False
    return model, {**config, "text_embed": False}, settings


def _attention(layer: Encoder, seen: dict[str, Call]) -> Segments:
    module = layer.attention.self
    heads, scale = module.num_attention_heads, module.attention_head_size**-0.5
    query, key = (split_heads(seen[name].output, heads) for name in ("query", "key"))
    relative = [seen["self"].kwargs.get(name) for name in ("rel_pos", "rel_2d_pos")]
    biases = [part for part in relative if part is not None]

    def bias(segments: slice, queries: slice) -> Tensor:
        parts = [b if len(b) == 1 else b[segments] for b in biases]
        total: Tensor = sum(b[:, :, queries] for b in parts) * scale
        return total

    return Segments(query, key, scale, bias=bias if biases else None)


def _watch(layer: Encoder) -> dict[str, Encoder]:
    module = layer.attention.self
    return {"query": module.query, "key": module.key, "self": module}


LAYOUTLMV3 = hf.family(
    "layoutlmv3",
    LayoutLMv3Model,
    build=_build,
    load=_load,
    native=lambda encoder: hf.side(encoder["input_size"]),
    run=lambda encoder, x: encoder(pixel_values=x).last_hidden_state,
    layers=lambda encoder: encoder.encoder.layer,
    prefix=lambda encoder: 1,
    watch=_watch,
    attention=_attention,
)
