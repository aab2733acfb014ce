"""The reduction of a prompt's visual inputs before the language model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compress.runtime.dense_prompt import DensePrompt
from compress.runtime.layout import BatchLayout
from compress.runtime.phases import chosen_counts, keep_also, phase_count, phase_order
from compress.runtime.prompt import PlacedInput
from compress.runtime.reduce_inputs import InputTokens, TextQueries, reduce_inputs
from compress.runtime.settings import Settings
from compress.tokens import Reduction


def counts_kept(inputs: Sequence[PlacedInput]) -> list[int]:
    """Tokens of each input that enter the language model."""
    return [item.allocation.keep for item in inputs]


def reduce_prompt(
    settings: Settings, prompt: DensePrompt, visual: Tensor, positions: Tensor
) -> tuple[list[Reduction], Tensor]:
    """The reduction of each input before the language model, and the rows (T', D) that enter it.

    Inputs that were reduced before the projector are taken as they are.

    visual: (T, D), the dense tokens. positions: (B, S, 3) float64, where they and the text stand.
    """
    inputs, layout = prompt.inputs, prompt.layout
    # Rows that generate repeats for its beams hold the same inputs, which are reduced once.
    first: dict[tuple[str, int], int] = {}
    for number, item in enumerate(inputs):
        if item.encoded.reductions is None:
            first.setdefault((item.encoded.kind, item.index), number)
    numbers = list(first.values())
    late = _reduce_late(settings, prompt, visual, numbers) if numbers else []
    by_input = dict(zip(first, late, strict=True))
    reductions, entering = [], []
    for item, offset in zip(inputs, layout.offsets, strict=True):
        if item.encoded.reductions is None:
            reductions.append(by_input[item.encoded.kind, item.index])
            entering.append(reductions[-1].features[0])
            continue
        # The projector has seen the merged features: they are in the rows of their carriers.
        reductions.append(item.encoded.reductions[item.index])
        carriers = item.encoded.carriers
        carrier = reductions[-1].anchor[0] if carriers is None else carriers[item.index]
        entering.append(visual[offset : offset + item.input.count][carrier])
    if settings.keep_phase:
        dense = visual.split(list(layout.counts))
        for number, item in enumerate(inputs):
            own = item.input.count, item.allocation.keep
            extra = phase_count(settings.keep_phase, *own)
            if extra:
                at = positions[item.row, item.columns.to(positions.device)]
                order = phase_order(settings.adapter.rotary, at).to(visual.device)
                parts = reductions[number], entering[number], dense[number]
                reductions[number], entering[number] = keep_also(*parts, order, extra)
    if settings.ordered and (settings.keep_phase or not settings.method.ordered):
        orders = [reduction.anchor[0].argsort(stable=True) for reduction in reductions]
        reductions = [reduction.by_anchor() for reduction in reductions]
        entering = [rows[order] for rows, order in zip(entering, orders, strict=True)]
    return reductions, torch.cat(entering)


def tokens_of(x: Tensor, layout: BatchLayout, numbers: Sequence[int]) -> Tensor:
    """Of x (T, ...) the tokens of some inputs, one after another."""
    starts, counts = layout.offsets, layout.counts
    return torch.cat([x[starts[n] : starts[n] + counts[n]] for n in numbers])


def _reduce_late(
    settings: Settings, prompt: DensePrompt, visual: Tensor, numbers: Sequence[int]
) -> list[Reduction]:
    """The reductions of some of the inputs, from post-projector features.

    visual: (T, D), the features of all inputs.
    """
    inputs = [prompt.inputs[number] for number in numbers]
    text = None
    if settings.reads("text_query"):
        text = TextQueries(
            prompt.embeds[prompt.text_rows[:, None], prompt.text],
            prompt.text_real,
            tuple(len(one.after) for one in prompt.texts),
            tuple(item.sample for item in inputs),
        )
    whole = len(inputs) == len(prompt.inputs)
    tokens = InputTokens(
        [item.input for item in inputs],
        visual if whole else tokens_of(visual, prompt.layout, numbers),
        _fields(inputs),
        _attention(inputs),
        text,
    )
    dense = [item.input.count for item in inputs]
    return reduce_inputs(settings, tokens, chosen_counts(settings, dense, counts_kept(inputs)))


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
    """One (N, N) map an input, where all have one."""
    maps = []
    for item in inputs:
        if item.encoded.attention is None:
            return None
        maps.append(item.encoded.attention[item.index])
    return maps
