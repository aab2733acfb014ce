"""A prompt with visual inputs before its reduction: read on the host, laid out on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.errors import CompressionError
from compress.runtime.cache_state import new_tokens_mask, packed_samples
from compress.runtime.context import ForwardContext
from compress.runtime.layout import BatchLayout
from compress.runtime.prompt import (
    HostPrompt,
    PlacedInput,
    SampleText,
    find_inputs,
    sample_texts,
)
from compress.runtime.tensors import copy_to, padded
from vlm.decoder import cache_of


@dataclass(frozen=True)
class DensePrompt:
    """B rows of S columns, with all visual tokens.

    host, inputs, texts: ids, visual inputs and the text of each sample, on the host. layout: where
    the visual tokens are. embeds: (B, S, D). query, query_real: (B, Q) int64 and bool, columns of
    the query rows. text, text_real: (samples, Qt), columns of the text after each sample's first
    visual input; text_rows: (samples,) int64, the row of each. priors: (B, K) int64, columns of the
    first text token after each visual input of a row; empty unless the method reads these rows.
    prior_of: for each input which of its row's K it is, K where no text follows.
    """

    host: HostPrompt
    inputs: list[PlacedInput]
    texts: list[SampleText]
    layout: BatchLayout
    embeds: Tensor
    query: Tensor
    query_real: Tensor
    text: Tensor
    text_real: Tensor
    text_rows: Tensor
    priors: Tensor
    prior_of: tuple[int, ...]

    @property
    def mask(self) -> Tensor:
        """(B, S) bool, False at padding."""
        return self.layout.mask


def read_prompt(context: ForwardContext, kwargs: dict[str, Any], dense: int) -> DensePrompt | None:
    """The prompt that is about to enter the language model; None where it has no visual tokens.

    kwargs: the language model's keyword arguments. dense: tokens that came before it, counted
    without reduction. The device is waited for once, and sent one tensor.

    Raises ValueError for placeholders that do not match, padding that an answer would go on from,
    or visual inputs that were encoded under other settings.
    """
    embeds: Tensor = kwargs["inputs_embeds"]
    host = _on_host(context, kwargs, dense)
    inputs = find_inputs(context.settings.adapter, context.encoded, host)
    if not inputs:
        return None
    _check(context, host, inputs)
    texts = sample_texts(host, inputs, context.settings.method.query_rows)
    query, query_real = padded(_query_columns(texts, len(embeds)))
    text, text_real = padded([one.after.tolist() for one in texts])
    priors, prior_of = _priors(context, inputs, texts, len(embeds))
    rows = torch.cat([torch.full_like(item.columns, item.row) for item in inputs])
    columns = torch.cat([item.columns for item in inputs])
    packed: list[Tensor] = [] if host.samples is None else [host.samples]
    parts = [rows, columns, host.mask, query, query_real, text, text_real]
    parts += [torch.tensor([one.row for one in texts]), priors]
    rows, columns, mask, query, query_real, text, text_real, text_rows, priors, *samples = copy_to(
        embeds.device, *parts, *packed
    )
    layout = BatchLayout(
        text_lengths=_text_lengths(texts, len(embeds)),
        input_rows=tuple(item.row for item in inputs),
        counts=tuple(len(item.columns) for item in inputs),
        mask=mask.bool(),
        rows=rows,
        columns=columns,
        samples=samples[0] if samples else None,
        left=_pads_left(context, host),
    )
    return DensePrompt(
        host, inputs, texts, layout, embeds, query, query_real.bool(), text, text_real.bool(),
        text_rows, priors, prior_of,
    )  # fmt: skip


def _priors(
    context: ForwardContext,
    inputs: Sequence[PlacedInput],
    texts: Sequence[SampleText],
    rows: int,
) -> tuple[Tensor, tuple[int, ...]]:
    """`DensePrompt.priors` on the host, and `prior_of`."""
    columns: list[list[int]] = [[] for _ in range(rows)]
    prior_of: list[int | None] = []
    for item in inputs:
        column = texts[item.sample].next_to(item.columns)
        if context.settings.method.score != "prior" or column is None:
            prior_of.append(None)
            continue
        prior_of.append(len(columns[item.row]))
        columns[item.row].append(column)
    priors, _ = padded(columns)
    return priors, tuple(priors.shape[1] if one is None else one for one in prior_of)


def _pads_left(context: ForwardContext, host: HostPrompt) -> bool:
    """Whether padding is on the left. Rows that the reduction leaves at several lengths are padded
    there where layers carry a state, which goes on decaying over padding at the end."""
    if bool((~host.mask[:, 0]).any()):
        return True
    return context.settings.is_recurrent and bool(host.mask[:, -1].all())


def _on_host(context: ForwardContext, kwargs: dict[str, Any], dense: int) -> HostPrompt:
    """What is decided on the host, in one copy from the device."""
    ids: Tensor = context.ids  # type: ignore[assignment]
    embeds: Tensor = kwargs["inputs_embeds"]
    if ids.shape != embeds.shape[:2]:
        raise ValueError(
            f"input_ids {tuple(ids.shape)} and inputs_embeds {tuple(embeds.shape)} do not match"
        )
    rows, count = ids.shape
    columns = {"ids": ids}
    mask = new_tokens_mask(kwargs.get("attention_mask"), rows, count, dense)
    if mask is not None:
        columns["mask"] = mask
    if context.labels is not None and context.labels.shape == ids.shape:
        columns["labels"] = context.labels
    text_positions = _text_positions(kwargs)
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
    real = host["mask"].bool() if "mask" in host else torch.ones(rows, count, dtype=torch.bool)
    samples = packed_samples(host["text"]) if "text" in host else None
    packed = samples is not None or kwargs.get("cu_seq_lens_q") is not None
    if packed and context.settings.is_recurrent:
        raise CompressionError(
            "several samples are packed in a row, and the state of linear decoder layers would run "
            "on from one to the next: expected one sample a row"
        )
    return HostPrompt(host["ids"], real, answers, samples)


def _text_positions(kwargs: dict[str, Any]) -> Tensor | None:
    """(B or 1, S) positions that may tell of packed samples, as the stock model reads them: no
    mask, no cache, text positions of the caller's."""
    given = kwargs.get("position_ids")
    cached = cache_of(kwargs) is not None or kwargs.get("use_cache")
    if given is None or cached or kwargs.get("attention_mask") is not None:
        return None
    if given.ndim == 3:  # without text positions in front, models pack nothing
        return given[0] if len(given) == 4 else None
    return given


def _check(context: ForwardContext, host: HostPrompt, inputs: Sequence[PlacedInput]) -> None:
    """Refuse what would go on from padding, or was encoded under other settings."""
    if context.logits_to_keep == 1 and not bool(host.mask[:, -1].all()):
        short = (~host.mask[:, -1]).nonzero().flatten().tolist()
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


def _query_columns(texts: Sequence[SampleText], rows: int) -> list[list[int]]:
    """Columns of the query rows of each row of the batch, sample by sample."""
    columns: list[list[int]] = [[] for _ in range(rows)]
    for one in texts:
        columns[one.row] += one.query.tolist()
    return columns


def _text_lengths(texts: Sequence[SampleText], rows: int) -> tuple[int, ...]:
    lengths = [0] * rows
    for one in texts:
        lengths[one.row] += one.count
    return tuple(lengths)
