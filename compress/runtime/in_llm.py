"""Visual tokens that leave between decoder layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from compress import ops
from compress.errors import CompressionError
from compress.runtime.context import ForwardContext, PrefillState
from compress.runtime.prefill import new_span
from compress.runtime.reduce_inputs import flat_anchor, pooled
from compress.runtime.scores import ScoringRows, text_attention
from compress.runtime.settings import Settings
from compress.runtime.tensors import copy_to, gather, scatter
from compress.tokens import LayerTokens, Reduction
from vlm.decoder import cache_of


def scoring_layers(settings: Settings, prefill: PrefillState) -> frozenset[int]:
    """The decoder layers before which this prompt's visual tokens will be scored."""
    layers, before = set(), list(prefill.layout.counts)
    for layer, counts in sorted(prefill.schedules.items()):
        if settings.scores_in_llm and counts != before and any(counts):
            layers.add(layer)
        before = counts
    return frozenset(layers)


def add_deepstack(prefill: PrefillState, layer: int, hidden_states: Tensor) -> Tensor:
    """Hidden states with what the model adds to visual tokens before decoder layer `layer`."""
    if layer not in prefill.deepstack:
        return hidden_states
    layout, device = prefill.layout, hidden_states.device
    rows, columns = layout.rows.to(device), layout.columns.to(device)
    added = scatter(torch.zeros_like(hidden_states), rows, columns, prefill.deepstack[layer])
    return hidden_states + added


def reduce_at_layer(
    context: ForwardContext, layer: int, hidden_states: Tensor, kwargs: dict[str, Any]
) -> Tensor:
    """Reduce the visual tokens that are about to enter a decoder layer.

    kwargs: the layer's keyword arguments. Returns the hidden states that go on, (B, W, D).
    """
    prefill: PrefillState = context.prefill  # type: ignore[assignment]
    counts = prefill.schedules[layer]
    if counts == list(prefill.layout.counts):
        return hidden_states
    settings = context.settings
    ranking = Ranking(layer)
    if settings.scores_in_llm and any(counts):
        ranking = _scores(context, layer, hidden_states, kwargs)
    elif settings.method.score == "change" and any(counts):
        before, _ = prefill.entered  # type: ignore[misc]
        change = hidden_states.float() - before.to(hidden_states.device).float()
        ranking = Ranking(layer, change.norm(dim=-1))
    reductions = _reductions(settings, prefill, counts, hidden_states, ranking)
    return _shorten(settings, prefill, layer, hidden_states, (reductions, counts))


class Ranking(NamedTuple):
    """What ranks the tokens that are about to enter decoder layer `layer`.

    scores: (B, S). keys: (B, S, Dk). priors: (B, K, S), attention of the first text token after
    each visual input of a row.
    """

    layer: int
    scores: Tensor | None = None
    keys: Tensor | None = None
    priors: Tensor | None = None


def _scores(
    context: ForwardContext, layer: int, hidden_states: Tensor, kwargs: dict[str, Any]
) -> Ranking:
    """Attention and keys of every token, in the layer that the method names."""
    begins = layer
    prefill: PrefillState = context.prefill  # type: ignore[assignment]
    rotary, adapter = kwargs["position_embeddings"], context.settings.adapter
    if context.settings.method.scored_by == "previous":
        layer -= 1
        hidden_states, rotary = prefill.entered  # type: ignore[misc]
    rows, device = len(hidden_states), hidden_states.device
    state, past = prefill.cached, None
    cached = torch.ones(rows, prefill.past, dtype=torch.bool, device=device)
    if state is not None:
        cached = state.span(layer).real(rows, device)
    if cached.shape[1]:
        past = _cached_keys(cache_of(kwargs), layer, cached.shape[1])
    span = next(one for one in reversed(prefill.spans) if one.first <= layer)
    scoring = ScoringRows(
        prefill.query,
        prefill.query_real,
        prefill.layout.mask,
        cached,
        past,
        span.key_bias(),
        prefill.layout.samples,
        adapter.blocks_in(adapter.layer_kinds[layer], prefill.blocks),
        prefill.layout.visual if context.settings.calibration.distance else None,
    )
    read = text_attention(adapter, layer, hidden_states, rotary, scoring, prefill.priors)
    return Ranking(begins, *read)


def _cached_keys(cache: Any, layer: int, count: int) -> Tensor:
    """(B, key heads, P, head_dim): rotated keys that a layer had cached before this prompt."""
    keys = getattr(cache.layers[layer], "keys", None)
    if not isinstance(keys, Tensor) or keys.ndim != 4 or keys.shape[2] < count:
        raise CompressionError(
            f"{type(cache).__name__} does not show the keys that it holds: visual inputs in a "
            "second turn cannot be ranked on it; use a DynamicCache"
        )
    return keys[:, :, :count]


def _reductions(
    settings: Settings,
    prefill: PrefillState,
    counts: Sequence[int],
    hidden_states: Tensor,
    ranking: Ranking,
) -> list[Reduction]:
    """The reduction of each input's tokens; those of one shape and count as one batch."""
    layout, device = prefill.layout, hidden_states.device
    rows, columns = layout.rows.to(device), layout.columns.to(device)
    shapes = [
        (item.input.grid, held, count)
        for item, held, count in zip(prefill.inputs, layout.counts, counts, strict=True)
    ]
    order = sorted(range(len(shapes)), key=lambda number: shapes[number])
    offsets = layout.offsets
    where = [torch.arange(offsets[n], offsets[n] + layout.counts[n]) for n in order]
    samples, *indices = copy_to(device, [prefill.inputs[n].sample for n in order], *where)
    own = _of_visual(prefill, ranking, rows, columns)
    hidden = hidden_states[rows, columns]
    size = prefill.sizes.to(device)
    anchor = torch.cat([reduction.anchor[0] for reduction in prefill.now]).to(device)
    found: dict[int, Reduction] = {}
    for (grid, _, count), group in groupby(range(len(order)), key=lambda i: shapes[order[i]]):
        members = list(group)
        batch = slice(members[0], members[-1] + 1)
        index = torch.stack(indices[batch])
        given = {name: x[index] for name, x in own.items()}
        if settings.method.draws_scores:
            given["scores"] = _drawn(index, layer=ranking.layer, generator=settings.generator)
        if "prior" in given:
            given["scores"] = ops.against_prior(given["scores"], given.pop("prior"))
        if settings.method.in_llm_needs & {"text", "text_keys", "text_mask"} and count:
            given |= _text(prefill, samples[batch], hidden_states, ranking.keys)
        part = LayerTokens(hidden[index], size[index], anchor[index], grid, **given)
        reduction = settings.method.reduce_in_llm(part, count, settings.generator)
        found |= {order[i]: reduction.sample(b) for b, i in enumerate(members)}
    return [found[number] for number in range(len(order))]


def _of_visual(
    prefill: PrefillState, ranking: Ranking, rows: Tensor, columns: Tensor
) -> dict[str, Tensor]:
    """What ranks each visual token, (T, ...) each; of all zeros is the prior of an input that no
    text follows."""
    named = {"scores": ranking.scores, "keys": ranking.keys}
    own = {name: x.to(rows.device)[rows, columns] for name, x in named.items() if x is not None}
    if ranking.priors is not None and ranking.priors.shape[1]:
        counts = torch.tensor(prefill.layout.counts)
        (number,) = copy_to(rows.device, torch.tensor(prefill.prior_of).repeat_interleave(counts))
        priors = functional.pad(ranking.priors.to(rows.device), (0, 0, 0, 1))
        own["prior"] = priors[rows, number, columns]
    return own


def _drawn(index: Tensor, layer: int, generator: torch.Generator | None) -> Tensor:
    """(b, n) float32: scores that are drawn; without a generator the same in any batch."""
    b, n = index.shape
    if generator is None:
        draw = torch.rand(1, n, generator=torch.Generator().manual_seed(layer)).expand(b, n)
    else:
        draw = torch.rand(b, n, generator=generator, device=generator.device)
    return ops.on_device(draw, index.device)


def _text(
    prefill: PrefillState, samples: Tensor, hidden_states: Tensor, keys: Tensor | None
) -> dict[str, Tensor]:
    """Fields of LayerTokens made of the text after the visual inputs of some samples."""
    device = hidden_states.device
    rows = prefill.text_rows.to(device)[samples][:, None]
    columns = prefill.text.to(device)[samples]
    fields = {
        "text": hidden_states[rows, columns],
        "text_mask": prefill.text_real.to(device)[samples],
    }
    if keys is not None:
        fields["text_keys"] = keys.to(device)[rows, columns]
    return fields


def _shorten(
    settings: Settings,
    prefill: PrefillState,
    layer: int,
    hidden_states: Tensor,
    change: tuple[list[Reduction], list[int]],
) -> Tensor:
    """Let only the reduced tokens go on; everything that runs along the tokens follows.

    change: the reductions and their counts.
    """
    reductions, counts = change
    for later, one in prefill.deepstack.items():
        if later > layer:
            prefill.deepstack[later] = pooled(one, reductions, prefill.sizes.to(one.device))
    layout, index, back = prefill.layout.after(flat_anchor(reductions), counts)
    prefill.follow(reductions, index, back)
    prefill.layout = layout
    prefill.later.append((layer, prefill.now))
    shorter = gather(hidden_states, index)
    features = torch.cat([reduction.features[0] for reduction in reductions])
    device = shorter.device
    shorter = scatter(shorter, layout.rows.to(device), layout.columns.to(device), features)
    firsts = [span.first for span in prefill.spans]
    for first in sorted({layer, *(one for one in firsts if one > layer)}):
        span = new_span(settings, prefill, first, device)
        prefill.spans[:] = [one for one in prefill.spans if one.first != first] + [span]
        prefill.spans.sort(key=lambda one: one.first)
    return shorter
