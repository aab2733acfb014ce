"""How much attention a question that names nothing pays to the tokens of a memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from compress.runtime.scores import projections
from compress.stream.memory import Memory, Rows


@torch.no_grad()
def proxy_attention(memory: Memory, embeds: Tensor, rows: Sequence[Rows]) -> list[Tensor]:
    """(S,) float32 for each group of layers: softmax attention of new text to the S held tokens,
    averaged over heads, tokens of the text, and layers of the group.

    memory: rotated keys; it is not changed. embeds: (1, n, D). rows: the new tokens, by group.
    """
    past, new = len(memory), embeds.shape[1]
    count = max(memory.groups) + 1
    total = [torch.zeros(past) for _ in range(count)]
    layers = [0] * count
    adapter, fork = memory.adapter, memory.fork()

    def score(layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        queries = torch.arange(new, device=hidden.device)[None]
        query, key = projections(adapter, layer, hidden, kwargs["position_embeddings"], queries)
        keys = torch.cat([memory.cache.layers[layer].keys, key], 2).float()
        grouped = query[0].float().unflatten(0, (keys.shape[1], -1))
        logits = grouped @ keys[0, :, None].mT
        later = torch.ones(new, new, dtype=torch.bool, device=logits.device).triu(1)
        logits[..., past:].masked_fill_(later, -torch.inf)
        group = memory.groups[layer]
        total[group] += logits.softmax(-1)[..., :past].mean((0, 1, 2)).cpu()
        layers[group] += 1

    handles = [
        adapter.layers[layer].register_forward_pre_hook(
            lambda _, args, kwargs, layer=layer: score(layer, args, kwargs), with_kwargs=True
        )
        for layer in memory.attending
    ]
    try:
        fork.extend(embeds, rows)
    finally:
        for handle in handles:
            handle.remove()
    return [part / max(1, number) for part, number in zip(total, layers, strict=True)]
