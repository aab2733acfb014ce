"""A prompt with visual inputs, reduced before the language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.methods import Method
from compress.runtime.cache_state import (
    CacheState,
    Span,
    cache_length,
    new_tokens_mask,
    packed_samples,
    positions_of,
    turn_positions,
)
from compress.runtime.context import ForwardContext, PrefillState
from compress.runtime.layout import BatchLayout
from compress.runtime.prompt import (
    HostPrompt,
    PlacedInput,
    SampleText,
    find_inputs,
    sample_texts,
)
from compress.runtime.reduce_inputs import (
    InputTokens,
    TextQueries,
    flat_anchor,
    pooled,
    reduce_inputs,
)
from compress.runtime.settings import Settings
from compress.runtime.tensors import copy_to, gather, padded, scatter
from compress.runtime.token_positions import Placement, place
from compress.tokens import Reduction


def begin_prefill(context: ForwardContext, kwargs: dict[str, Any]) -> None:
    """Reduce a prompt before the language model; sets `arguments`, `table`, `prefill` and `state`.

    kwargs: the language model's keyword arguments. Nothing is set where the prompt holds no visual
    tokens.
    """
    embeds: Tensor = kwargs["inputs_embeds"]
    settings, state = context.settings, context.state
    past = 0 if context.cache is None else cache_length(context.cache)
    prompt = _on_host(context, kwargs, past if state is None else state.dense)
    inputs = find_inputs(settings.adapter, context.encoded, prompt)
    if not inputs:
        return
    _check(context, prompt, inputs)
    if state is not None:
        state.begin_turn()
    texts = sample_texts(prompt, inputs, settings.method.query_rows)
    context.clock.restart()
    with context.clock.time("reduce"):
        layout, text = _layout(prompt, inputs, texts, embeds.device)
        words = _text_queries(settings, inputs, texts, text, embeds)
        reductions, features = _reduce(settings, inputs, layout, embeds, words)
    with context.clock.time("plan"):
        positions = _dense_positions(context, kwargs, prompt, layout.mask, past)
        prefill, embeds, index = _enter(
            settings, _Dense(prompt, inputs, texts, layout, text, embeds), reductions, features,
            _deepstack(kwargs, layout),
        )  # fmt: skip
        prefill.cached, prefill.past = state, past
        start = past if state is None else state.length
        begins = torch.full((len(embeds),), float(past), dtype=torch.float64, device=embeds.device)
        if state is not None:
            begins = state.next_position
        placement = Placement(
            prompt, inputs, reductions, prefill.layout, positions, index, start, begins
        )
        prefill.table = context.table = place(settings, placement, layout.mask)
        layers = [0] if state is None else [span.first for span in state.spans]
        prefill.spans = [new_span(settings, prefill, layer, embeds.device) for layer in layers]
        context.state = _new_state(context, prefill, prompt, texts, layout.mask)
        context.prefill = prefill
        context.arguments = _arguments(prefill, kwargs, embeds)


@dataclass(frozen=True)
class _Dense:
    """A prompt before its reduction: on the host, and on the device."""

    prompt: HostPrompt
    inputs: list[PlacedInput]
    texts: list[SampleText]
    layout: BatchLayout
    text: tuple[Tensor, Tensor]
    embeds: Tensor


def _enter(
    settings: Settings,
    dense: _Dense,
    reductions: list[Reduction],
    features: Tensor,
    deepstack: list[Tensor],
) -> tuple[PrefillState, Tensor, Tensor | None]:
    """The prompt as it enters the language model, its embeddings (B, W, D), and the dense column
    of each of its tokens (B, W), None where all are left."""
    keeps = _keeps(settings, dense.inputs)
    layout, embeds, index, back = dense.layout, dense.embeds, None, None
    text, text_real = dense.text
    query, query_real, text_rows = _query_rows(dense.texts, len(embeds), embeds.device)
    if keeps != list(layout.counts):
        sizes = torch.ones(len(layout.rows), dtype=torch.int64, device=embeds.device)
        deepstack = [pooled(one, reductions, sizes.to(one.device)) for one in deepstack]
        layout, index, back = layout.after(flat_anchor(reductions), keeps)
        embeds = gather(embeds, index)
        embeds = scatter(embeds, layout.rows, layout.columns, features)
        query, text = back.gather(1, query), back[text_rows[:, None], text]
    prefill = PrefillState(
        inputs=dense.inputs,
        layout=layout,
        schedules=_schedules(settings, dense.inputs, dense.texts),
        query=query,
        query_real=query_real,
        text=text,
        text_real=text_real,
        text_rows=text_rows,
        first=tuple(reductions),
        deepstack=deepstack,
        back=back,
        text_tokens=sum(one.count for one in dense.texts),
    )
    if settings.method.query_rows == "salient":
        _mark_salient(settings.method, prefill, dense.texts, embeds)
    return prefill, embeds, index


def _new_state(
    context: ForwardContext,
    prefill: PrefillState,
    prompt: HostPrompt,
    texts: Sequence[SampleText],
    mask: Tensor,
) -> CacheState:
    """What later forwards have to know, once the layers have run."""
    state = context.state
    old = prefill.past if state is None else state.real_tokens
    dense = prefill.past if state is None else state.dense
    return CacheState(
        spans=prefill.spans,
        rows=len(mask),
        dense=dense + prompt.ids.shape[1],
        real=mask.sum(1) + old,
        next_at=prefill.table.next_position,
        trailing=_trailing(prefill.layout, texts),
        core=context.settings.adapter.core,
    )


def _on_host(context: ForwardContext, kwargs: dict[str, Any], dense: int) -> HostPrompt:
    """What is decided on the host, in one copy from the device."""
    ids: Tensor = context.ids  # type: ignore[assignment]
    embeds: Tensor = kwargs["inputs_embeds"]
    if ids.shape != embeds.shape[:2]:
        raise ValueError(
            f"input_ids {tuple(ids.shape)} and inputs_embeds {tuple(embeds.shape)} do not match"
        )
    rows, count = ids.shape
    mask = new_tokens_mask(kwargs.get("attention_mask"), rows, count, dense)
    columns = {"ids": ids}
    if mask is not None:
        columns["mask"] = mask
    labels = context.labels
    if labels is not None and labels.shape == ids.shape:
        columns["labels"] = labels
    text_positions = _text_positions(context, kwargs)
    if text_positions is not None:
        columns["text"] = text_positions.expand(rows, -1)
    stacked = torch.stack([one.to(ids.device, torch.int64) for one in columns.values()]).cpu()
    host = dict(zip(columns, stacked, strict=True))
    answers = None
    if "labels" in host:
        answers = host["labels"] != -100
    elif context.logits_to_keep > 1:
        # The tokens before the last are candidates, or a completion.
        answers = torch.zeros(rows, count, dtype=torch.bool)
        answers[:, 1 - context.logits_to_keep :] = True
    valid = host["mask"].bool() if "mask" in host else torch.ones(rows, count, dtype=torch.bool)
    samples = packed_samples(host["text"]) if "text" in host else None
    return HostPrompt(host["ids"], valid, answers, samples)


def _text_positions(context: ForwardContext, kwargs: dict[str, Any]) -> Tensor | None:
    """(B or 1, S) positions that may tell of packed samples, as the stock model reads them: no
    mask, no cache, text positions of the caller's."""
    given = kwargs.get("position_ids")
    cached = kwargs.get("past_key_values") is not None or kwargs.get("use_cache")
    if given is None or cached or kwargs.get("attention_mask") is not None:
        return None
    if given.ndim == 3:  # without text positions in front, models pack nothing
        return given[0] if len(given) == 4 else None
    return given


def _check(context: ForwardContext, prompt: HostPrompt, inputs: Sequence[PlacedInput]) -> None:
    """Refuse what would go on from padding, or was encoded under other settings."""
    if context.logits_to_keep == 1 and not bool(prompt.mask[:, -1].all()):
        short = (~prompt.mask[:, -1]).nonzero().flatten().tolist()
        raise ValueError(
            f"rows {short} of the batch are padded on the right, and the next token is asked for, "
            "which would go on from padding: pad on the left (tokenizer.padding_side = 'left')"
        )
    for item in inputs:
        if item.encoded.settings is not context.settings:
            raise ValueError(
                f"the {item.encoded.kind}s were encoded under another compression or budget: "
                "encode them again under this one"
            )


def _layout(
    prompt: HostPrompt,
    inputs: Sequence[PlacedInput],
    texts: Sequence[SampleText],
    device: torch.device,
) -> tuple[BatchLayout, tuple[Tensor, Tensor]]:
    """The dense layout on the device, and the text after the visual inputs: columns (samples, Qt)
    int64 and which of them are real, bool."""
    rows = [torch.full_like(item.columns, item.row) for item in inputs]
    text, text_real = padded([one.after for one in texts])
    parts = [torch.cat(rows), torch.cat([item.columns for item in inputs]), prompt.mask]
    packed = [] if prompt.samples is None else [prompt.samples]
    row, column, mask, text, text_real, *samples = copy_to(device, *parts, text, text_real, *packed)
    counts = [0] * len(prompt.mask)
    for one in texts:
        counts[one.row] += one.count
    layout = BatchLayout(
        text_lengths=tuple(counts),
        input_rows=tuple(item.row for item in inputs),
        counts=tuple(len(item.columns) for item in inputs),
        mask=mask.bool(),
        rows=row,
        columns=column,
        samples=samples[0] if samples else None,
        left=bool((~prompt.mask[:, 0]).any()),
    )
    return layout, (text, text_real.bool())


def _text_queries(
    settings: Settings,
    inputs: Sequence[PlacedInput],
    texts: Sequence[SampleText],
    text: tuple[Tensor, Tensor],
    embeds: Tensor,
) -> TextQueries | None:
    """The embeddings of the text after the visual inputs, for methods that read them."""
    if not settings.reads("text_query"):
        return None
    columns, real = text
    (rows,) = copy_to(embeds.device, [one.row for one in texts])
    return TextQueries(
        embeds[rows[:, None], columns],
        real,
        tuple(len(one.after) for one in texts),
        tuple(item.sample for item in inputs),
    )


def _query_rows(
    texts: Sequence[SampleText], rows: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Columns (B, Q) int64 of the query rows, which are real, and the row of each sample."""
    by_row: list[list[int]] = [[] for _ in range(rows)]
    for one in texts:
        by_row[one.row] += one.query.tolist()
    query, real, text_rows = copy_to(device, *padded(by_row), [one.row for one in texts])
    return query, real.bool(), text_rows


def _keeps(settings: Settings, inputs: Sequence[PlacedInput]) -> list[int]:
    """Tokens of each input that enter the language model."""
    return [settings.allocation(item.input.count).keep for item in inputs]


def _schedules(
    settings: Settings,
    inputs: Sequence[PlacedInput],
    texts: Sequence[SampleText],
) -> dict[int, list[int]]:
    """For each decoder layer at which any input's schedule has a pair, the tokens that each input
    keeps from it on.

    A sample without any text keeps a token of its last visual input in every layer: that token
    asks, and is answered.
    """
    last = {item.sample: number for number, item in enumerate(inputs)}
    least = [
        int(texts[item.sample].count == 0 and last[item.sample] == number)
        for number, item in enumerate(inputs)
    ]
    counts = [settings.allocation(item.input.count).counts for item in inputs]
    layers = {
        layer for item in inputs for layer, _ in settings.allocation(item.input.count).schedule
    }
    return {
        layer: [max(one[layer], floor) for one, floor in zip(counts, least, strict=True)]
        for layer in sorted(layers)
    }


def _reduce(
    settings: Settings,
    inputs: Sequence[PlacedInput],
    layout: BatchLayout,
    embeds: Tensor,
    text: TextQueries | None,
) -> tuple[list[Reduction], Tensor]:
    """The reduction of each input before the language model, and the rows (T', D) that enter it."""
    visual = embeds[layout.rows, layout.columns]
    offsets = layout.offsets
    # Rows that generate repeats for its beams hold the same inputs, which are reduced once.
    first: dict[tuple[str, int], int] = {}
    for number, item in enumerate(inputs):
        if item.encoded.reductions is None:
            first.setdefault((item.encoded.kind, item.index), number)
    late = []
    if first:
        late = _reduce_late(settings, inputs, list(first.values()), (layout, visual), text)
    by_input = dict(zip(first, late, strict=True))
    reductions, entering = [], []
    for item, offset in zip(inputs, offsets, strict=True):
        if item.encoded.reductions is None:
            reductions.append(by_input[item.encoded.kind, item.index])
            entering.append(reductions[-1].features[0])
            continue
        # The projector has seen the merged features: they are in the rows of their carriers.
        reductions.append(item.encoded.reductions[item.index])
        carriers = item.encoded.carriers
        carrier = reductions[-1].anchor[0] if carriers is None else carriers[item.index]
        entering.append(visual[offset : offset + item.input.count][carrier])
    return reductions, torch.cat(entering)


def _reduce_late(
    settings: Settings,
    inputs: Sequence[PlacedInput],
    numbers: list[int],
    visual: tuple[BatchLayout, Tensor],
    text: TextQueries | None,
) -> list[Reduction]:
    """The reductions of some of the inputs, from post-projector features.

    visual: the layout, and the features (T, D) of all inputs.
    """
    some = [inputs[number] for number in numbers]
    layout, features = visual
    tokens = InputTokens(
        [item.input for item in some],
        features if len(some) == len(inputs) else _pieces(features, layout, numbers),
        _fields(some),
        _attention(some),
        None if text is None else text.select(numbers),
    )
    return reduce_inputs(settings, tokens, _keeps(settings, some))


def _pieces(x: Tensor, layout: BatchLayout, numbers: Sequence[int]) -> Tensor:
    """Of x (T, ...) the tokens of some inputs."""
    starts, counts = layout.offsets, layout.counts
    return torch.cat([x[starts[n] : starts[n] + counts[n]] for n in numbers])


def _fields(inputs: Sequence[PlacedInput]) -> dict[str, Tensor]:
    """Fields of VisualTokens that all inputs have, (T, ...)."""
    names = set.intersection(*(set(item.encoded.fields) for item in inputs))
    fields = {}
    for name in names:
        pieces = []
        for item in inputs:
            start = item.encoded.offsets[item.index]
            pieces.append(item.encoded.fields[name][start : start + item.input.count])
        fields[name] = torch.cat(pieces)
    return fields


def _attention(inputs: Sequence[PlacedInput]) -> list[Tensor] | None:
    maps = [item.encoded.attention for item in inputs]
    if not maps or any(one is None for one in maps):
        return None
    return [one[item.index] for one, item in zip(maps, inputs, strict=True)]  # type: ignore[index]


def _dense_positions(
    context: ForwardContext, kwargs: dict[str, Any], prompt: HostPrompt, mask: Tensor, past: int
) -> Tensor:
    """(B, S, 3) float64: where the stock model places each token, or would.

    In a later turn the stock model does not know where the text stands that came before, and under
    M-RoPE it places the tokens of a picture as if they were text: the picture's grid is placed.
    """
    state, given, rows = context.state, kwargs.get("position_ids"), len(mask)
    if state is None:
        if given is not None:
            return positions_of(given, rows)
        index = torch.arange(past, past + mask.shape[1], device=mask.device).double()
        return index.expand(rows, -1)[..., None].expand(-1, -1, 3)
    adapter = context.settings.adapter
    positions = (state.next_position[:, None] + mask.cumsum(1) - 1)[..., None].expand(-1, -1, 3)
    if given is not None and context.positions_given:
        positions = turn_positions(state, given, mask, adapter.deltas)
    ids: Tensor = context.ids  # type: ignore[assignment]
    own = adapter.chunk_positions(ids, mask, context.media)
    if own is not None:
        positions = own.to(mask.device) + state.next_position[:, None, None]
    return positions


def _deepstack(kwargs: dict[str, Any], layout: BatchLayout) -> list[Tensor]:
    """For each of the first layers what the model adds to the visual tokens after it, (T, D)."""
    layers, mask = kwargs.get("deepstack_visual_embeds"), kwargs.get("visual_pos_masks")
    if layers is None or mask is None:
        return []
    order = (mask.flatten().cumsum(0) - 1).reshape(mask.shape)
    index = order[layout.rows, layout.columns]
    return [one[index.to(one.device)] for one in layers]


def _mark_salient(
    method: Method, prefill: PrefillState, texts: Sequence[SampleText], embeds: Tensor
) -> None:
    """Leave only those query rows that the method finds salient.

    A sample without text after its visual inputs, or without any of these, keeps the rows it has.
    """
    layout = prefill.layout
    visual = embeds[layout.rows, layout.columns]
    text = embeds[prefill.text_rows[:, None], prefill.text]
    place = torch.arange(prefill.text.shape[1], device=embeds.device)
    marks = torch.ones_like(prefill.text_real)
    of_sample: dict[int, list[int]] = {}
    for number, item in enumerate(prefill.inputs):
        of_sample.setdefault(item.sample, []).append(number)
    for sample, numbers in of_sample.items():
        if not len(texts[sample].after):
            continue
        one = slice(sample, sample + 1)
        real = prefill.text_real[one]
        seen = _pieces(visual, layout, numbers)[None]
        salient = method.salient_rows(text[one], seen, real) & real
        last = torch.where(real, place, -1).amax(1, keepdim=True) == place
        marks[one] = torch.where(salient.any(1, keepdim=True), salient, last)
    # Query row q of a row of the batch is token `text_of[q]` of sample `sample_of[q]`.
    samples: list[list[int]] = [[] for _ in layout.mask]
    indices: list[list[int]] = [[] for _ in layout.mask]
    for number, one in enumerate(texts):
        asks = number in of_sample and len(one.after) > 0
        samples[one.row] += [number if asks else -1] * len(one.query)
        indices[one.row] += range(len(one.query))
    sample_of, text_of = copy_to(embeds.device, padded(samples)[0], padded(indices)[0])
    width = max(1, marks.shape[1])
    chosen = marks[sample_of.clamp(min=0), text_of.clamp(max=width - 1)] if marks.numel() else True
    prefill.query_real = prefill.query_real & (chosen | (sample_of < 0))


def new_span(settings: Settings, prefill: PrefillState, layer: int, device: torch.device) -> Span:
    """What the layers from `layer` on hold once they have run the prompt as it is now."""
    layout, state = prefill.layout, prefill.cached
    rows, width = layout.mask.shape
    before = Span(0, prefill.past) if state is None else state.span(layer)
    span = Span(layer, before.length + width)
    if before.valid is not None or layout.is_padded:
        old = before.real(rows, device)
        span.valid = torch.cat([old, layout.mask.to(device)], dim=1)
    if layout.samples is not None:
        span.samples = layout.samples.to(device)
    biased = settings.proportional_attention and any(
        reduction.count < reduction.assign.shape[1] for reduction in prefill.now
    )
    old_bias = before.key_bias()
    if biased or old_bias is not None:
        if old_bias is None:
            old_bias = torch.zeros(rows, before.length, device=device)
        own = torch.zeros(rows, width, device=device)
        if biased:
            sizes = prefill.sizes.to(device).float().log()
            own = scatter(own, layout.rows.to(device), layout.columns.to(device), sizes)
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


def _arguments(prefill: PrefillState, kwargs: dict[str, Any], embeds: Tensor) -> dict[str, Any]:
    """What the language model is given in place of its own arguments."""
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
    if kwargs.get("deepstack_visual_embeds") is not None:
        arguments |= {"visual_pos_masks": None, "deepstack_visual_embeds": None}
    return arguments
