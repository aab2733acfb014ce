"""The stock decoder layers, one by one, on the tokens that are left of a sequence.

Each layer runs under a mask that is written here from its definition; an attention function of the
tests' own gives the attention map and keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.reference_vision import MAPS


@dataclass
class Tokens:
    """What stands in a sequence: hidden states (S, D), positions (S, A) on A axes, number of the
    visual input or -1 (S,), the dense token that each stands for (S,), tokens merged in it (S,),
    whether it is text after the first visual input (S,), whether it ranks the visual ones (S,),
    where it stood in the dense prompt (S,), its block of two-way attention or -1 (S,), and what
    DeepStack adds after each layer, (S, D)."""

    h: Tensor
    positions: Tensor
    image: Tensor
    index: Tensor
    size: Tensor
    after: Tensor
    asking: Tensor
    place: Tensor
    block: Tensor
    deep: list[Tensor] = field(default_factory=list)

    def take(self, index: Tensor) -> Tokens:
        parts = (self.h, self.positions, self.image, self.index, self.size, self.after, self.asking)
        parts += (self.place, self.block)
        return Tokens(*(part[index] for part in parts), [x[index] for x in self.deep])


def language_model(model: Any) -> Any:
    core = model.model
    return getattr(core, "language_model", None) or core.text_model


@dataclass
class LayerRun:
    """What a decoder layer made: hidden states (S, D), and of attention every head's map,
    (heads, S, S), and its rotated keys, (key heads, S, d)."""

    hidden: Tensor
    weights: Tensor = field(default_factory=lambda: torch.empty(0))
    keys: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass
class Terms:
    """What is added to attention logits at visual keys: by size, a share in the first layer, by
    distance among the first `prompt` tokens of the dense sequence. dense, left: tokens of each
    visual input, and those of them that enter."""

    size: bool
    first_layer: bool = False
    distance: bool = False
    prompt: int = 0
    dense: tuple[int, ...] = ()
    left: tuple[int, ...] = ()

    def added(self, number: int, tokens: Tokens, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """(S, S): for each query and key of a layer."""
        count = len(tokens.h)
        added = torch.zeros(count, count)
        if number == 0 and self.first_layer:
            for image, (dense, left) in enumerate(zip(self.dense, self.left, strict=True)):
                added[:, tokens.image == image] = math.log(dense / left)
        elif self.size:
            added = added + tokens.size.log()
        if self.distance:
            angle = torch.atan2(rotary[1][0].double(), rotary[0][0].double())
            apart = torch.stack([(angle - own).cos().mean(1) for own in angle])
            pairs = (tokens.place < self.prompt)[:, None] & (tokens.image >= 0)
            added = added + (2 - apart).log().float() * pairs
        return added


def run_layer(model: Any, number: int, tokens: Tokens, terms: Terms) -> LayerRun:
    """One stock decoder layer on the tokens that are left."""
    lm, layer, h = language_model(model), language_model(model).layers[number], tokens.h[None]
    local = getattr(lm.config, "sliding_window", None) is not None
    usual = ["sliding_attention" if local else "full_attention"] * len(lm.layers)
    kind = (getattr(lm.config, "layer_types", None) or usual)[number]
    positions = tokens.positions
    places = positions.T[:, None] if positions.shape[1] > 1 else positions.T
    by_kind = {"layer_type": kind} if hasattr(lm.rotary_emb, "layer_types") else {}
    rotary = lm.rotary_emb(h, position_ids=places, **by_kind)
    if kind == "linear_attention":
        out = layer(h, position_embeddings=rotary, attention_mask=None)
        return LayerRun(out[0])
    added = torch.where(_sees(lm.config, kind, tokens), 0.0, -torch.inf)
    added = added + terms.added(number, tokens, rotary)
    stock, lm.config._attn_implementation = lm.config._attn_implementation, "recorded"
    MAPS.clear()
    try:
        out = layer(h, position_embeddings=rotary, attention_mask=added[None, None])
    finally:
        lm.config._attn_implementation = stock
    ((key, weights),) = MAPS[layer.self_attn]
    return LayerRun(out[0], weights[0], key[0])


def _sees(config: Any, kind: str, tokens: Tokens) -> Tensor:
    """(S, S) bool: whether each token attends to each other."""
    there = torch.arange(len(tokens.h))
    sees = there <= there[:, None]
    sees |= (tokens.block == tokens.block[:, None]) & (tokens.block >= 0)
    if kind == "sliding_attention":
        # As many tokens of the dense sequence as the model was trained to see.
        sees &= tokens.place[:, None] - tokens.place < config.sliding_window
    if kind == "chunked_attention":
        chunk = tokens.place // config.attention_chunk_size
        sees &= chunk == chunk[:, None]
    return sees
