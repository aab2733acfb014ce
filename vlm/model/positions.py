"""Planned positions of a batch with visual inputs, over prefill, decoding and further turns.

The plan of a batch is an attribute of its key/value cache. Later forwards read it from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from positions import Plan, PlannedRotary, PositionTable, Segment, Text, plan
from vlm.fusion import Block, Fusion

_ON_CACHE = "foveate_positions"


# The blocks of one visual input, in the order of the sequence.
Blocks = tuple[Block, ...]


def _tokens(blocks: Blocks) -> int:
    return sum(block.tokens for block in blocks)


def placed(
    outputs: Mapping[str, Any], placeholders: Mapping[str, int | None]
) -> dict[int, list[Blocks]]:
    """The visual inputs of a batch in order, by placeholder id.

    outputs: `FoveateFeatures` by modality. Raises ValueError if their tokens do not
    match their blocks.
    """
    inputs = {}
    for modality, token_id in placeholders.items():
        output = outputs.get(modality)
        if output is None or token_id is None or getattr(output, "blocks", None) is None:
            continue
        counts = [len(tokens) for tokens in output.pooler_output]
        expected = [_tokens(blocks) for blocks in output.blocks]
        if expected != counts:
            raise ValueError(
                f"{modality} features of {counts} tokens and blocks of {expected} tokens: expected "
                "equal numbers; do not drop features or split the prefill into chunks"
            )
        inputs[token_id] = list(output.blocks)
    return inputs


def plan_batch(
    ids: Tensor,
    valid: Tensor,
    inputs: Mapping[int, list[Blocks]],
    fusion: Fusion,
    starts: Sequence[float] | None = None,
) -> list[Plan]:
    """One plan a row.

    ids: (B, S). valid: (B, S) bool, real tokens. inputs: from `placed`. starts: the position of
    each row's first token (0).
    """
    queues = {token_id: list(items) for token_id, items in inputs.items()}
    rows = zip(ids.cpu(), valid.bool().cpu(), starts or [0.0] * len(ids), strict=True)
    return [_plan_row(row[real].tolist(), queues, fusion, start) for row, real, start in rows]


def _plan_row(
    ids: list[int], queues: dict[int, list[Blocks]], fusion: Fusion, start: float
) -> Plan:
    segments: list[Segment] = []
    at = text = 0
    while at < len(ids):
        queue = queues.get(ids[at])
        if not queue:
            at, text = at + 1, text + 1
            continue
        blocks = queue.pop(0)
        segments.append(Text(text))
        text = 0
        for block in blocks:
            segments.append(block.segment(fusion.config.scheme_of(block.expert)))
        at += _tokens(blocks)
    segments.append(Text(text))
    return plan(segments, start=start, generator=fusion.generator)


def place(
    ids: Tensor | None,
    embeds: Tensor,
    position_ids: Tensor | None,
    mask: Tensor | dict[str, Tensor] | None,
    cache: Cache | None,
    inputs: Mapping[int, list[Blocks]],
    fusion: Fusion,
) -> tuple[PositionTable, Tensor] | None:
    """The positions of cached and new tokens, and the index of each new token in that table.

    ids: (B, q) new tokens. embeds: (B, q, D). position_ids: integers as `generate` counts them,
    each row's real tokens from 0. inputs: the visual inputs among the new tokens.
    Returns the table and (B, q) int64. Returns None if each token is one step after the previous
    one, or if the caller has given real positions.
    """
    known = remembered(cache)
    if known is None and not (fusion.config.scheme and inputs):
        return None
    if position_ids is not None and (position_ids.ndim != 2 or position_ids.is_floating_point()):
        return None
    rows, new = embeds.shape[:2]
    past = 0 if cache is None else int(cache.get_seq_length())
    index = _index(position_ids, mask, rows, new, past).to(embeds.device)
    if known is not None and new == 1 and not inputs:
        return known, index
    valid = real_tokens(mask, rows, new, past).cpu()
    ids = torch.full((rows, new), -1) if ids is None else ids
    # The first new token of each row. A row without one continues from its last.
    first = index.cpu().gather(1, valid.long().argmax(1, keepdim=True))
    start = first.double() if known is None else known.lookup(first)[:, :, 0, 0].cpu()
    plans = plan_batch(ids, valid, inputs, fusion, start[:, 0].tolist())
    return _extended(known, plans, first[:, 0].tolist()).to(embeds.device), index


def packed_samples(
    position_ids: Tensor | None, mask: Any, cache: Cache | None, use_cache: bool | None
) -> Tensor | None:
    """(B, S) int64: the sample of each token in a row of packed samples. None if rows hold one.

    As in transformers, samples are packed if there is no mask and no cache, and positions restart.
    """
    if position_ids is None or position_ids.ndim != 2 or position_ids.is_floating_point():
        return None
    if mask is not None or cache is not None or use_cache:
        return None
    begins = position_ids.diff(dim=1) != 1
    if not bool(begins.any()):
        return None
    return torch.nn.functional.pad(begins.long().cumsum(1), (1, 0))


def place_packed(
    ids: Tensor | None, samples: Tensor, inputs: Mapping[int, list[Blocks]], fusion: Fusion
) -> tuple[PositionTable, Tensor] | None:
    """As `place`, for rows of packed samples, each planned by itself. samples: (B, S)."""
    if ids is None or not inputs or not fusion.config.scheme:
        return None
    queues = {token_id: list(items) for token_id, items in inputs.items()}
    rows = []
    for row, of in zip(ids.cpu(), samples.cpu().expand(len(ids), -1), strict=True):
        parts = row.split(torch.unique_consecutive(of, return_counts=True)[1].tolist())
        plans = [_plan_row(part.tolist(), queues, fusion, 0.0) for part in parts]
        rows.append(torch.cat([plan.positions for plan in plans]))
    positions = torch.stack(rows)
    inexact = (positions.float().double() != positions).flatten(1).any(1)
    table = PositionTable(positions, positions.amax((1, 2, 3)).ceil() + 1, inexact)
    index = torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
    return table.to(ids.device), index


def packed_mask(samples: Tensor, dtype: torch.dtype, kind: str) -> Tensor:
    """(B, 1, S, S), to be added to attention logits: a token sees earlier ones of its sample."""
    if kind not in ("sdpa", "eager"):
        raise ValueError(
            f"packed samples whose tokens are placed by a scheme, with attention {kind!r}: "
            "expected 'sdpa' or 'eager', which take a mask"
        )
    length = samples.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=samples.device).tril()
    seen = causal & (samples[:, :, None] == samples[:, None])
    mask = torch.zeros(seen.shape, dtype=dtype, device=samples.device)
    return mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def remember(cache: Cache | None, table: PositionTable) -> None:
    """Store a plan on the cache that its tokens fill."""
    if cache is not None:
        setattr(cache, _ON_CACHE, table)


def remembered(cache: Cache | None) -> PositionTable | None:
    """The plan of the tokens in a cache; None where they stand one step after another."""
    table: PositionTable | None = getattr(cache, _ON_CACHE, None)
    return table


def real_tokens(mask: Tensor | dict[str, Tensor] | None, rows: int, new: int, past: int) -> Tensor:
    """(rows, new) bool: which new tokens are real, not padding, from a mask of any usual form."""
    if isinstance(mask, dict):
        mask = mask.get("full_attention", next(iter(mask.values())))
    if mask is None:
        return torch.ones(rows, new, dtype=torch.bool)
    if mask.ndim == 4:
        # The last query sees every real token.
        last = mask[:, 0, -1, past : past + new]
        mask = last if last.dtype == torch.bool else last == 0
    if mask.shape[1] < new:
        raise ValueError(
            f"attention_mask of {mask.shape[1]} columns for {new} new tokens: expected one column "
            "for each, and for each cached one"
        )
    return mask[:, -new:].bool().expand(rows, -1)


def _index(position_ids: Tensor | None, mask: Any, rows: int, new: int, past: int) -> Tensor:
    if position_ids is not None:
        return position_ids.expand(rows, -1)
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return (mask.long().cumsum(1) - 1).clamp(min=0)[:, -new:].expand(rows, -1)
    return torch.arange(past, past + new).expand(rows, -1)


def _extended(
    known: PositionTable | None, plans: Sequence[Plan], first: Sequence[int]
) -> PositionTable:
    """Positions of each row: those in `known` first, then its plan, then one step a token.

    Rows contain only real tokens, in order, so their indices do not depend on padding.
    """
    before = torch.arange(max(first), dtype=torch.float64)[None, :, None].expand(len(plans), -1, 3)
    if known is not None and max(first):
        index = torch.arange(max(first), device=known.positions.device)[None]
        before = known.lookup(index)[:, :, 0].cpu()
    rows = [
        torch.cat((old[:count], plan.positions[:, 0]))
        for old, count, plan in zip(before, first, plans, strict=True)
    ]
    length = max(len(row) for row in rows)
    ends = []
    for at, (row, own) in enumerate(zip(rows, plans, strict=True)):
        more = own.next_position + torch.arange(length - len(row), dtype=torch.float64)
        rows[at] = torch.cat((row, more[:, None].expand(-1, 3)))
        ends.append(own.next_position + len(more))
    positions = torch.stack(rows)[:, :, None]
    inexact = (positions.float().double() != positions).flatten(1).any(1)
    return PositionTable(positions, torch.tensor(ends, dtype=torch.float64), inexact)


def real_positions(table: PositionTable, index: Tensor) -> Tensor:
    """Positions in the form of a language model, float64: (B, q), or (3, B, q) on three axes."""
    positions = table.lookup(index)[:, :, 0]
    if bool((positions == positions[..., :1]).all()):
        return positions[..., 0]
    return positions.permute(2, 0, 1)


@contextmanager
def planned(rotary: Any, table: PositionTable | None) -> Iterator[None]:
    """Look positions up in `table` while the language model runs."""
    if table is None:
        yield
        return
    with PlannedRotary(rotary).use(table):
        yield


def has_plan(rotary: nn.Module) -> bool:
    """Whether other code has attached planned positions to a rotary embedding."""
    hooks = rotary._forward_pre_hooks.values()
    return any(isinstance(getattr(hook, "__self__", None), PlannedRotary) for hook in hooks)
