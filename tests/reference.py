"""A slow, obvious reduced forward for one unpadded sample: no hooks, no cache, eager attention.

It is written from the formulas and shares no code with the package beyond the method's own choice
before the language model, which `tests/compress/test_methods.py` checks against numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.methods import Method
from compress.tokens import VisualTokens


@dataclass
class Prefix:
    """A reduced prompt: embeddings (S, D), dense positions (S,), image number or -1 (S,)."""

    embeds: Tensor
    positions: Tensor
    image: Tensor
    dense: int


def saliency_and_keys(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """CLS attention of the scoring layer from a tower that is asked for all its maps."""
    tower, before = model.model.vision_tower, model.model.vision_tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    out = tower(pixels, output_attentions=True, output_hidden_states=True)
    tower.set_attn_implementation(before)
    layer = model.config.vision_feature_layer
    block = tower.encoder.layers[layer]
    entering = out.hidden_states[layer - 1]
    keys = block.self_attn.k_proj(block.layer_norm1(entering))
    heads = block.self_attn.num_heads
    keys = keys.unflatten(-1, (heads, -1)).mean(2)[:, 1:]
    return out.attentions[layer].mean(1)[:, 0, 1:], keys, out.hidden_states[layer][:, 1:]


def reduce_prompt(model: Any, method: Method, keep: int, ids: Tensor, pixels: Tensor) -> Prefix:
    saliency, keys, features = saliency_and_keys(model, pixels)
    side = int(features.shape[1] ** 0.5)
    tokens = VisualTokens(features, (1, side, side), keys=keys, saliency=saliency)
    reduction = method.reduce(tokens, keep)
    words = model.get_input_embeddings()(ids)
    visual = (ids == model.config.image_token_id).nonzero().flatten().split(features.shape[1])
    embeds, positions, image = [], [], []
    spans = {int(place[0]): number for number, place in enumerate(visual)}
    at = 0
    while at < len(ids):
        if at in spans:
            number = spans[at]
            embeds += list(model.model.multi_modal_projector(reduction.features[number]))
            positions += [at + int(cell) for cell in reduction.anchor[number]]
            image += [number] * keep
            at += features.shape[1]
        else:
            embeds.append(words[at])
            positions.append(at)
            image.append(-1)
            at += 1
    return Prefix(torch.stack(embeds), torch.tensor(positions), torch.tensor(image), len(ids))


def attention(lm: Any, layer: Any, h: Tensor, positions: Tensor) -> Tensor:
    """Every head's whole causal attention map, (heads, S, S)."""
    normed, width = layer.input_layernorm(h), layer.self_attn.head_dim
    cos, sin = lm.rotary_emb(h[None], position_ids=positions[None])

    def heads(x: Tensor) -> Tensor:
        x = x.unflatten(-1, (-1, width)).transpose(0, 1)
        a, b = x.chunk(2, -1)
        return x * cos[0] + torch.cat([-b, a], -1) * sin[0]

    q, k = heads(layer.self_attn.q_proj(normed)), heads(layer.self_attn.k_proj(normed))
    logits = q @ k.repeat_interleave(q.shape[0] // k.shape[0], 0).transpose(1, 2) * width**-0.5
    above = torch.ones(logits.shape[1:], dtype=torch.bool).triu(1)
    return logits.masked_fill(above, -torch.inf).softmax(-1)


def forward(
    model: Any, prefix: Prefix, stages: dict[int, int], new: Tensor | None = None
) -> tuple[Tensor, list[int]]:
    """Logits (S, V) of the tokens that reach the last layer, and the tokens in each layer.

    stages: decoder layer -> visual tokens of each image from there on, by the attention of the
    last prompt token. new: (t,) ids that follow the prompt (they do not change the choice).
    """
    lm = model.model.language_model
    h, positions, image = prefix.embeds, prefix.positions, prefix.image
    new = torch.tensor([], dtype=torch.int64) if new is None else new
    h = torch.cat([h, model.get_input_embeddings()(new)])
    positions = torch.cat([positions, prefix.dense + torch.arange(len(new))])
    image = torch.cat([image, torch.full((len(new),), -1)])
    lengths = []
    for number, layer in enumerate(lm.layers):
        if number in stages:
            asking = len(h) - len(new) - 1
            scores = attention(lm, layer, h, positions)[:, asking].mean(0)
            stay = image < 0
            for one in range(int(image.max()) + 1):
                mine = (image == one).nonzero().flatten().tolist()
                order = sorted(mine, key=lambda i: (-float(scores[i]), i))
                stay[order[: stages[number]]] = True
            h, positions, image = h[stay], positions[stay], image[stay]
        weight = attention(lm, layer, h, positions)
        value = layer.self_attn.v_proj(layer.input_layernorm(h))
        value = value.unflatten(-1, (-1, layer.self_attn.head_dim)).transpose(0, 1)
        value = value.repeat_interleave(weight.shape[0] // value.shape[0], 0)
        h = h + layer.self_attn.o_proj((weight @ value).transpose(0, 1).flatten(1))
        h = h + layer.mlp(layer.post_attention_layernorm(h))
        lengths.append(len(h))
    return model.lm_head(lm.norm(h)), lengths


def greedy(model: Any, prefix: Prefix, stages: dict[int, int], steps: int) -> tuple[Tensor, Tensor]:
    """Greedy ids (steps,) and the logits (steps, V) that each was chosen from."""
    ids: list[int] = []
    rows = []
    for _ in range(steps):
        logits, _ = forward(model, prefix, stages, torch.tensor(ids, dtype=torch.int64))
        rows.append(logits[-1])
        ids.append(int(logits[-1].argmax()))
    return torch.tensor(ids), torch.stack(rows)
