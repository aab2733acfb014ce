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
    DeepStack adds after each layer, (S, D); ids (S,), that of padding at visual tokens; and whether
    blocks hold in sliding layers alone."""

    h: Tensor
    positions: Tensor
    image: Tensor
    index: Tensor
    size: Tensor
    after: Tensor
    asking: Tensor
    place: Tensor
    block: Tensor
    ids: Tensor
    local_blocks: bool
    deep: list[Tensor] = field(default_factory=list)

    def take(self, index: Tensor) -> Tokens:
        parts = (self.h, self.positions, self.image, self.index, self.size, self.after, self.asking)
        parts += (self.place, self.block, self.ids)
        deep = [x[index] for x in self.deep]
        return Tokens(*(part[index] for part in parts), self.local_blocks, deep)


def language_model(model: Any) -> Any:
    core = getattr(model, "model", model)
    decoder = getattr(core, "language_model", None) or core.text_model
    return getattr(decoder, "model", decoder)  # Llama 4 holds one with a head


def kinds_of(lm: Any) -> list[str]:
    """The kind of each decoder layer."""
    local = getattr(lm.config, "sliding_window", None) is not None
    usual = ["sliding_attention" if local else "full_attention"] * len(lm.layers)
    return getattr(lm.config, "layer_types", None) or usual


@dataclass
class LayerRun:
    """What a decoder layer made: hidden states (S, D), and of attention every head's map,
    (heads, S, S), and its rotated keys, (key heads, S, d)."""

    hidden: Tensor
    weights: Tensor = field(default_factory=lambda: torch.empty(0))
    keys: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass
class Shared:
    """What runs from layer to layer beside the hidden states: keys that later layers read, and the
    embeddings of the tokens for each layer, (dense S, layers, d) by place, None without; the tokens
    of the dense prompt, and which ids in it have the experts of visual tokens."""

    keys: dict[str, Any] = field(default_factory=dict)
    per_layer: Tensor | None = None
    dense: int = 0
    marks: Tensor = field(default_factory=lambda: torch.empty(0))

    @classmethod
    def of(cls, model: Any, tokens: Tokens, dense: int) -> Shared:
        lm, config = language_model(model), model.config
        if hasattr(config, "image_start_token_id"):
            marks = torch.tensor([config.image_start_token_id, config.image_end_token_id])
            return cls(dense=dense, marks=marks)
        if not getattr(lm, "hidden_size_per_layer_input", 0):
            return cls()
        own = lm.project_per_layer_inputs(tokens.h, lm.get_per_layer_inputs(tokens.ids))
        by_place = own.new_zeros(int(tokens.place.max()) + 1, *own.shape[1:])
        return cls(per_layer=by_place.index_put((tokens.place,), own))

    def arguments(self, lm: Any, number: int, tokens: Tokens) -> dict[str, Any]:
        """What layer `number` is given beside hidden states, cos, sin and mask."""
        if hasattr(lm.config, "moe_num_experts"):  # ERNIE: which experts a token has
            marks = torch.isin(tokens.ids, self.marks) & (tokens.place < self.dense)
            return {"moe_mm_token_type_ids": ((tokens.image >= 0) | marks).long()[None]}
        if not hasattr(lm, "first_kv_shared_layer_idx"):
            return {}
        own = None if self.per_layer is None else self.per_layer[tokens.place, number][None]
        return {"per_layer_input": own, "shared_kv_states": self.keys}


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


def run_layer(
    model: Any, number: int, tokens: Tokens, terms: Terms, shared: Shared | None = None
) -> LayerRun:
    """One stock decoder layer on the tokens that are left."""
    lm, layer, h = language_model(model), language_model(model).layers[number], tokens.h[None]
    kind = kinds_of(lm)[number]
    positions = tokens.positions
    places = positions.T[:, None] if positions.shape[1] > 1 else positions.T
    by_kind = {"layer_type": kind} if hasattr(lm.rotary_emb, "layer_types") else {}
    rotary = lm.rotary_emb(h, position_ids=places, **by_kind)
    if kind in ("linear_attention", "conv"):
        out = layer(h, position_embeddings=rotary, attention_mask=None)
        return LayerRun(out[0])
    more = (shared or Shared()).arguments(lm, number, tokens)
    added = torch.where(_sees(lm.config, kind, tokens), 0.0, -torch.inf)
    added = added + terms.added(number, tokens, rotary)
    stock, lm.config._attn_implementation = lm.config._attn_implementation, "recorded"
    MAPS.clear()
    try:
        out = layer(h, position_embeddings=rotary, attention_mask=added[None, None], **more)
    finally:
        lm.config._attn_implementation = stock
    ((key, weights),) = MAPS[layer.self_attn]
    return LayerRun(out[0], weights[0], key[0])


def _sees(config: Any, kind: str, tokens: Tokens) -> Tensor:
    """(S, S) bool: whether each token attends to each other."""
    there = torch.arange(len(tokens.h))
    sees = there <= there[:, None]
    if kind == "sliding_attention":
        # As many tokens of the dense sequence as the model was trained to see.
        sees &= tokens.place[:, None] - tokens.place < config.sliding_window
    if kind == "chunked_attention":
        chunk = tokens.place // config.attention_chunk_size
        sees &= chunk == chunk[:, None]
    if kind == "sliding_attention" or not tokens.local_blocks:
        together = (tokens.block == tokens.block[:, None]) & (tokens.block >= 0)
        if tokens.local_blocks:  # Gemma 4 cuts blocks at the window, Gemma 3 does not
            together &= tokens.place[:, None] - tokens.place < config.sliding_window
        sees |= together
    return sees
