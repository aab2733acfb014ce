"""A prompt with visual inputs enters the language model, reduced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from compress.errors import CompressionError
from compress.methods import Method
from compress.runtime.cache_state import (
    CacheState,
    Span,
    cache_length,
    positions_of,
    turn_positions,
)
from compress.runtime.calibrated import key_terms
from compress.runtime.context import ForwardContext, PrefillState
from compress.runtime.dense_prompt import DensePrompt, read_prompt
from compress.runtime.layout import BatchLayout
from compress.runtime.prompt import PlacedInput, SampleText
from compress.runtime.prompt_reduction import counts_kept, reduce_prompt, tokens_of
from compress.runtime.reduce_inputs import flat_anchor, pooled
from compress.runtime.settings import Settings
from compress.runtime.tensors import copy_to, gather, padded, scatter
from compress.runtime.token_positions import Placement, place
from compress.tokens import Reduction


def begin_prefill(context: ForwardContext, kwargs: dict[str, Any]) -> None:
    """Reduce a prompt before the language model; sets `arguments`, `table`, `prefill` and `state`.

    kwargs: the language model's keyword arguments. Nothing is set where the prompt holds no visual
    tokens.
    """
    settings, state = context.settings, context.state
    past = 0 if context.cache is None else cache_length(context.cache)
    prompt = read_prompt(context, kwargs, past if state is None else state.dense)
    if prompt is None:
        return
    context.clock.restart()
    if state is not None:
        state.begin_turn()
    with context.clock.time("plan"):
        positions = _dense_positions(context, kwargs, prompt, past)
    visual = prompt.embeds[prompt.layout.rows, prompt.layout.columns]
    injected = _injected(settings, kwargs, prompt)
    if settings.adapter.enters_empty:
        visual = injected[min(injected)]
    with context.clock.time("reduce"):
        reductions, features = reduce_prompt(settings, prompt, visual, positions)
    with context.clock.time("plan"):
        prefill, embeds, index = _enter(settings, prompt, reductions, features)
        _take_deepstack(prefill, injected, settings.adapter.enters_empty)
        prefill.cached, prefill.past = state, past
        placement = Placement(
            prompt,
            reductions,
            prefill.layout,
            positions,
            index,
            past if state is None else state.length,
            _begins(state, past, embeds),
        )
        prefill.table, prefill.dense_positions = place(settings, placement)
        context.table = prefill.table
        if settings.tracks_places:
            prefill.places = prefill.table.positions[:, :, 0, 0].to(embeds.device)
        prefill.blocks = _blocks(context, prompt, prefill.layout, index)
        prefill.spans = [
            new_span(settings, prefill, layer, embeds.device) for layer in _firsts(settings, state)
        ]
        context.state = _new_state(context, prefill, prompt)
        context.prefill = prefill
        context.arguments = _arguments(settings, prefill, kwargs, embeds, index)


def _firsts(settings: Settings, state: CacheState | None) -> list[int]:
    """The first layers of the spans, before any token leaves between layers."""
    firsts = {0} if state is None else {span.first for span in state.spans}
    if settings.calibration.first_layer and len(settings.adapter.layers) > 1:
        firsts.add(1)
    return sorted(firsts)


def _blocks(
    context: ForwardContext, prompt: DensePrompt, layout: BatchLayout, index: Tensor | None
) -> Tensor | None:
    """(B, W) int64: the attention block of each token that is left, -1 for none."""
    ids: Tensor = context.ids  # type: ignore[assignment]
    blocks = context.settings.adapter.attention_blocks(ids, context.media)
    if blocks is None or index is None:
        return blocks
    return blocks.gather(1, index.to(blocks.device)).masked_fill(~layout.mask, -1)


def _begins(state: CacheState | None, past: int, embeds: Tensor) -> Tensor:
    """(B,) float64: where the first new token stands."""
    if state is not None:
        return state.next_position
    return torch.full((len(embeds),), float(past), dtype=torch.float64, device=embeds.device)


def _enter(
    settings: Settings, prompt: DensePrompt, reductions: list[Reduction], features: Tensor
) -> tuple[PrefillState, Tensor, Tensor | None]:
    """The prompt as it enters the language model, its embeddings (B, W, D), and the dense column
    of each of its tokens (B, W), None where all are left.

    features: (T', D), the visual tokens that enter.
    """
    keeps = counts_kept(prompt.inputs)
    layout, embeds, index, back = prompt.layout, prompt.embeds, None, None
    query, text, priors = prompt.query, prompt.text, prompt.priors
    if keeps != list(layout.counts):
        layout, index, back = layout.after(flat_anchor(reductions), keeps)
        embeds = gather(embeds, index)
        if not settings.adapter.enters_empty:
            embeds = scatter(embeds, layout.rows, layout.columns, features)
        query, text = back.gather(1, query), back[prompt.text_rows[:, None], text]
        priors = back.gather(1, priors)
    prefill = PrefillState(
        inputs=prompt.inputs,
        layout=layout,
        schedules=_schedules(prompt.inputs, prompt.texts),
        query=query,
        query_real=prompt.query_real,
        text=text,
        text_real=prompt.text_real,
        text_rows=prompt.text_rows,
        priors=priors,
        prior_of=prompt.prior_of,
        first=tuple(reductions),
        back=back,
        text_tokens=sum(one.count for one in prompt.texts),
        features=features,
    )
    if settings.method.query_rows == "salient":
        _mark_salient(settings.method, prefill, prompt.texts, embeds)
    return prefill, embeds, index


def _new_state(context: ForwardContext, prefill: PrefillState, prompt: DensePrompt) -> CacheState:
    """What later forwards have to know, once the layers have run."""
    state, (rows, count) = context.state, prompt.mask.shape
    return CacheState(
        spans=prefill.spans,
        rows=rows,
        dense=count + (prefill.past if state is None else state.dense),
        real=prompt.mask.sum(1) + (prefill.past if state is None else state.real_tokens),
        next_at=prefill.table.next_position,
        trailing=_trailing(prefill.layout, prompt.texts),
        core=context.settings.adapter.core,
    )


def _schedules(
    inputs: Sequence[PlacedInput],
    texts: Sequence[SampleText],
) -> dict[int, list[int]]:
    """For each decoder layer at which any input's schedule has a pair, the tokens that each input
    keeps from it on.

    A sample that begins with visual inputs keeps a token of the last one before any text in every
    layer: the first word, or the answer to a prompt without words, is predicted from it.
    """
    predictors = {one.predictor for one in texts}
    least = [int(number in predictors) for number in range(len(inputs))]
    counts = [item.allocation.counts for item in inputs]
    layers = {layer for item in inputs for layer, _ in item.allocation.schedule}
    return {
        layer: [max(one[layer], floor) for one, floor in zip(counts, least, strict=True)]
        for layer in sorted(layers)
    }


def _dense_positions(
    context: ForwardContext, kwargs: dict[str, Any], prompt: DensePrompt, past: int
) -> Tensor:
    """(B, S, 3) float64: where the stock model places each token, or would.

    In a later turn the stock model does not know where the text stands that came before, and under
    M-RoPE it places the tokens of a picture as if they were text: the picture's grid is placed.
    """
    state, given, mask = context.state, kwargs.get("position_ids"), prompt.mask
    rows = len(mask)
    if state is None:
        if given is not None:
            return positions_of(given, rows)
        index = torch.arange(past, past + mask.shape[1], device=mask.device).double()
        return index.expand(rows, -1)[..., None].expand(-1, -1, 3)
    adapter = context.settings.adapter
    positions = (state.next_position[:, None] + mask.cumsum(1) - 1)[..., None].expand(-1, -1, 3)
    if given is not None and context.positions_given:
        positions = turn_positions(state, given, mask, adapter.deltas)
    media: dict[str, Any] = {}
    for encoded in context.encoded.values():
        media |= encoded.call
    media |= {name: value for name, value in context.media.items() if value is not None}
    # Rows that generate repeats for its beams share their visual inputs.
    times = max(Counter((item.encoded.kind, item.index) for item in prompt.inputs).values())
    ids: Tensor = context.ids  # type: ignore[assignment]
    own = adapter.chunk_positions(ids[::times], mask[::times], media)
    if own is not None:
        own = own.to(mask.device).repeat_interleave(times, 0)
        positions = own + state.next_position[:, None, None]
    return positions


def _injected(settings: Settings, kwargs: dict[str, Any], prompt: DensePrompt) -> dict[int, Tensor]:
    """What the model adds to the visual tokens, (T, D), by the decoder layer before which it is."""
    mask, layers = (kwargs.get(name) for name in settings.adapter.injects)
    if layers is None or mask is None:
        return {}
    if not isinstance(layers, dict):  # after each of the first layers
        layers = dict(enumerate(layers, start=1))
    mask = mask[..., 0] if mask.ndim == 3 else mask
    order = (mask.flatten().cumsum(0) - 1).reshape(mask.shape)
    index = order[prompt.layout.rows, prompt.layout.columns]
    return {layer: one[index.to(one.device)] for layer, one in layers.items()}


def _take_deepstack(prefill: PrefillState, injected: dict[int, Tensor], empty: bool) -> None:
    """What is added to the visual tokens that entered.

    empty: as `ModelAdapter.enters_empty`; what is added first is then what the method made.
    """
    prefill.deepstack = injected
    if prefill.back is not None:
        prefill.deepstack = {
            layer: pooled(
                one, prefill.first, torch.ones(len(one), dtype=torch.int64, device=one.device)
            )
            for layer, one in injected.items()
        }
    if empty:
        prefill.deepstack[min(injected)] = prefill.features


def _mark_salient(
    method: Method, prefill: PrefillState, texts: Sequence[SampleText], embeds: Tensor
) -> None:
    """Leave only those query rows that the method finds salient.

    A sample without text after its visual inputs, or without any of these, keeps the rows it has.
    """
    layout = prefill.layout
    visual = prefill.features
    text = embeds[prefill.text_rows[:, None], prefill.text]
    index = torch.arange(prefill.text.shape[1], device=embeds.device)
    marks = torch.ones_like(prefill.text_real)
    inputs_of: dict[int, list[int]] = {}
    for number, item in enumerate(prefill.inputs):
        if len(texts[item.sample].after):
            inputs_of.setdefault(item.sample, []).append(number)
    for sample, numbers in inputs_of.items():
        one = slice(sample, sample + 1)
        real = prefill.text_real[one]
        seen = tokens_of(visual, layout, numbers)[None]
        salient = method.salient_rows(text[one], seen, real) & real
        last = torch.where(real, index, -1).amax(1, keepdim=True) == index
        marks[one] = torch.where(salient.any(1, keepdim=True), salient, last)
    if not inputs_of:
        return
    # Query row q of a row of the batch is token `token_of[q]` of sample `sample_of[q]`.
    samples: list[list[int]] = [[] for _ in layout.mask]
    tokens: list[list[int]] = [[] for _ in layout.mask]
    for number, sample_text in enumerate(texts):
        asks = number in inputs_of
        samples[sample_text.row] += [number if asks else -1] * len(sample_text.query)
        tokens[sample_text.row] += [i if asks else 0 for i in range(len(sample_text.query))]
    sample_of, token_of = copy_to(embeds.device, padded(samples)[0], padded(tokens)[0])
    chosen = marks[sample_of.clamp(min=0), token_of]
    prefill.query_real = prefill.query_real & (chosen | (sample_of < 0))


def new_span(settings: Settings, prefill: PrefillState, layer: int, device: torch.device) -> Span:
    """What the layers from `layer` on hold once they have run the prompt as it is now."""
    layout, state = prefill.layout, prefill.cached
    rows, width = layout.mask.shape
    before = Span(0, prefill.past) if state is None else state.span(layer)
    span = Span(layer, before.length + width)
    if settings.is_recurrent and before.length and layout.is_padded:
        raise CompressionError(
            "rows of a later turn are left with different numbers of tokens, and decoder layers "
            "that carry a state would let it decay over the padding between: expected one row, or "
            "visual inputs of one size"
        )
    if prefill.places is not None:
        old = before.places
        if old is None:
            old = torch.arange(before.length, device=device).expand(rows, -1)
        span.places = torch.cat([old.to(prefill.places), prefill.places], dim=1)
    if before.valid is not None or layout.is_padded:
        old = before.real(rows, device)
        span.valid = torch.cat([old, layout.mask.to(device)], dim=1)
    if layout.samples is not None:
        span.samples = layout.samples.to(device)
    terms = key_terms(settings.calibration, prefill.now, layer, device)
    old_bias = before.key_bias()
    if terms is not None or old_bias is not None:
        if old_bias is None:
            old_bias = torch.zeros(rows, before.length, device=device)
        own = torch.zeros(rows, width, device=device)
        if terms is not None:
            own = scatter(own, layout.rows.to(device), layout.columns.to(device), terms)
        span.bias = torch.cat([old_bias.to(device), own], dim=1)
    return span


def _trailing(layout: BatchLayout, texts: Sequence[SampleText]) -> int:
    """Columns at the end that are text in every row."""
    width = layout.mask.shape[1]
    trailing = [width] * len(layout.mask)
    with_inputs = set(layout.input_rows)
    for one in texts:  # of packed samples, the last one of a row counts
        if one.row in with_inputs:
            padding = 0 if layout.left else width - layout.lengths[one.row]
            trailing[one.row] = one.trailing + padding
    return min(trailing)


def _arguments(
    settings: Settings,
    prefill: PrefillState,
    kwargs: dict[str, Any],
    embeds: Tensor,
    columns: Tensor | None,
) -> dict[str, Any]:
    """What the language model is given in place of its own arguments.

    columns: (B, W) int64, the dense column of each token that is left; None where all are.
    """
    span, (rows, width) = prefill.spans[0], embeds.shape[:2]
    start = span.length - width
    index = torch.arange(start, span.length, device=embeds.device).expand(rows, -1)
    mask = None
    if span.samples is None:
        mask = span.valid
        mask = None if mask is None else mask[:, : span.length].long()
    arguments: dict[str, Any] = {
        "inputs_embeds": embeds,
        "attention_mask": mask,
        "position_ids": index,
    }
    if kwargs.get(settings.adapter.injects[1]) is not None:
        arguments |= dict.fromkeys(settings.adapter.injects)
    for name in settings.adapter.along:
        if kwargs.get(name) is not None and columns is not None:
            arguments[name] = gather(kwargs[name], columns)
    padded_right = prefill.layout.is_padded and not prefill.layout.left
    if "logits_to_keep" in kwargs and (padded_right or kwargs["logits_to_keep"] != 1):
        arguments["logits_to_keep"] = 0  # see `PrefillState.last_only`
    return arguments
