"""Planned positions of a batch with visual inputs, over prefill, decoding and further turns.

The plan of a batch is remembered on its key/value cache: a Python attribute of the cache object
itself, so that it goes where the cache goes and ends with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from positions import Plan, PlannedRotary, PositionTable, Segment, Text, plan
from vlm.canvas import JointReduction
from vlm.fusion import Block, Fusion

_ON_CACHE = "foveate_positions"


@dataclass(frozen=True)
class Placed:
    """One visual input in a sequence: its blocks, and a reduction of all their tokens together."""

    blocks: tuple[Block, ...]
    reduction: JointReduction | None = None

    @property
    def tokens(self) -> int:
        """Placeholders in the sequence."""
        if self.reduction is not None:
            return int(self.reduction.anchor.shape[-1])
        return sum(block.tokens for block in self.blocks)


def placed(
    outputs: Mapping[str, Any], placeholders: Mapping[str, int | None]
) -> dict[int, list[Placed]]:
    """The visual inputs of a batch in order, by placeholder id.

    outputs: `FoveateFeatures` by modality. Raises ValueError where they hold other tokens than
    their blocks say.
    """
    inputs = {}
    for modality, token_id in placeholders.items():
        found = outputs.get(modality)
        if found is None or token_id is None or getattr(found, "blocks", None) is None:
            continue
        counts = [len(tokens) for tokens in found.pooler_output]
        cuts = found.reductions or [None] * len(found.blocks)
        items = [Placed(*pair) for pair in zip(found.blocks, cuts, strict=True)]
        if [item.tokens for item in items] != counts:
            raise ValueError(
                f"{modality} features of {counts} tokens do not fit their blocks: reduce them by "
                "FoveateFeatures.reduced, and do not split the prefill into chunks"
            )
        inputs[token_id] = items
    return inputs


def plan_batch(
    ids: Tensor,
    valid: Tensor,
    inputs: Mapping[int, list[Placed]],
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
    ids: list[int], queues: dict[int, list[Placed]], fusion: Fusion, start: float
) -> Plan:
    segments: list[Segment] = []
    reductions: dict[Any, Any] = {}
    at = text = 0
    while at < len(ids):
        queue = queues.get(ids[at])
        if not queue:
            at, text = at + 1, text + 1
            continue
        item = queue.pop(0)
        segments.append(Text(text))
        first, text = len(segments), 0
        for block in item.blocks:
            segments.append(block.segment(fusion.config.scheme_of(block.expert)))
        if item.reduction is not None:
            reductions[tuple(range(first, len(segments)))] = item.reduction
        at += item.tokens
    segments.append(Text(text))
    dense = plan(segments, start=start, generator=fusion.generator)
    return dense.after(reductions) if reductions else dense


def table_for(
    ids: Tensor | None,
    embeds: Tensor,
    mask: Tensor | dict[str, Tensor] | None,
    cache: Cache | None,
    past: int,
    inputs: Mapping[int, list[Placed]],
    fusion: Fusion,
) -> PositionTable | None:
    """Where cached and new tokens stand; None where each stands one step after the one before.

    ids: (B, q) new tokens. embeds: (B, q, D). past: how many are cached.
    """
    known = table_of(cache)
    reduced = any(item.reduction is not None for items in inputs.values() for item in items)
    if known is None and not reduced and not (fusion.config.scheme and inputs):
        return None
    new = embeds.shape[1]
    if known is not None and new == 1 and not inputs:
        return known
    valid = validity(mask, len(embeds), past + new).cpu()
    ids = torch.full((len(embeds), new), -1) if ids is None else ids
    plans = plan_batch(ids, valid[:, past:], inputs, fusion, starts(known, valid, past))
    return extend(known, plans, valid, past).to(embeds.device)


def table_of(cache: Cache | None) -> PositionTable | None:
    """The plan that a cache was filled by, None if by no plan."""
    return getattr(cache, _ON_CACHE, None)


def remember(cache: Cache | None, table: PositionTable) -> None:
    """Bind a plan to the cache that it fills."""
    if cache is not None:
        setattr(cache, _ON_CACHE, table)


def validity(mask: Tensor | dict[str, Tensor] | None, rows: int, length: int) -> Tensor:
    """(rows, length) bool: real tokens, from an attention mask of any of the usual forms."""
    if isinstance(mask, dict):
        mask = mask.get("full_attention", next(iter(mask.values())))
    if mask is None:
        return torch.ones(rows, length, dtype=torch.bool)
    if mask.ndim == 4:
        last = mask[:, 0, -1, :length]
        mask = last if last.dtype == torch.bool else last == 0
    if mask.shape[1] < length:
        raise ValueError(
            f"attention_mask of {mask.shape[1]} columns for {length} tokens, cached ones included: "
            "expected one column a token"
        )
    return mask[:, -length:].bool().expand(rows, -1)


def extend(
    table: PositionTable | None, plans: Sequence[Plan], valid: Tensor, past: int
) -> PositionTable:
    """The table of `past` cached tokens and the new ones that `plans` place.

    valid: (B, past + q) bool.
    """
    new = PositionTable.from_plans(plans, valid[:, past:])
    if past == 0:
        return new
    shape = (len(new), past, new.slots, 3)
    known = torch.zeros(shape, dtype=torch.float64, device=new.positions.device)
    if table is not None:
        old = table.to(new.positions.device)
        known[:] = old.lookup(torch.arange(past)[None])[:, :, :1]
        new = PositionTable(new.positions, new.next_position, new.exact | old.exact, new.layout)
    return PositionTable(
        torch.cat((known, new.positions), dim=1), new.next_position, new.exact, new.layout
    )


def starts(table: PositionTable | None, valid: Tensor, past: int) -> list[float]:
    """Where the first new token of each row stands, after `past` cached ones."""
    if table is None:
        return [float(n) for n in valid[:, :past].sum(1)]
    since = valid[:, table.length : past].sum(1)
    return [float(p + n) for p, n in zip(table.next_position.tolist(), since.tolist(), strict=True)]


@contextmanager
def planned(rotary: nn.Module | None, table: PositionTable | None) -> Iterator[None]:
    """Look positions up in `table` while the language model runs.

    Where somebody else has planned positions on this rotary embedding, theirs count.
    """
    if table is None or rotary is None or has_plan(rotary):
        yield
        return
    with table.on(rotary):
        yield


def has_plan(rotary: nn.Module) -> bool:
    """Whether planned positions are attached to a rotary embedding."""
    hooks = rotary._forward_pre_hooks.values()
    return any(isinstance(getattr(hook, "__self__", None), PlannedRotary) for hook in hooks)
