"""A prompt with visual inputs, reduced before the language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compress.runtime.places import positions_after
from compress.runtime.rows import Rows
from compress.runtime.scores import take
from compress.runtime.stage import Pass, Placed, Prompt, follow_deepstack, split, with_bias, write
from compress.runtime.state import (
    State,
    chunk_mask,
    length_of,
    positions_of,
    samples_of,
    turn_positions,
)
from compress.runtime.views import reduce_inputs
from compress.tokens import Reduction

if TYPE_CHECKING:
    from compress.runtime.attach import Compression


def begin(
    owner: Compression, kwargs: dict[str, Any], ids: Tensor, state: State | None, trusted: bool
) -> Pass | None:
    """Reduce a prompt before the language model; None if it holds no visual tokens.

    kwargs: those of the language model. ids: (B, S). trusted: whether positions in `kwargs` are
    those of the dense sequence, and not what a model makes of the length of a reduced cache.
    """
    embeds: Tensor = kwargs["inputs_embeds"]
    device, cache = embeds.device, kwargs.get("past_key_values")
    past = 0 if cache is None else length_of(cache)
    dense = state.dense if state else past
    if ids.shape != embeds.shape[:2]:
        raise ValueError(
            f"input_ids {tuple(ids.shape)} and inputs_embeds {tuple(embeds.shape)} do not match"
        )
    mask = chunk_mask(kwargs.get("attention_mask"), len(ids), ids.shape[1], dense, device).cpu()
    items = _placed(owner, ids.cpu(), mask)
    if not items:
        return None
    if owner.says_next and not bool(mask[:, -1].all()):
        short = (~mask[:, -1]).nonzero().flatten().tolist()
        raise ValueError(
            f"rows {short} of the batch are padded on the right, and the next token is asked for, "
            "which would go on from padding: pad on the left (tokenizer.padding_side = 'left')"
        )
    given = kwargs.get("position_ids") if trusted else None
    if state is None:
        given = positions_of(given, embeds)
    else:
        given = turn_positions(state, given, embeds, mask.to(device), owner.adapter.deltas)
    homes = _homes(given, embeds, mask.to(device), state, past)
    held: list[list[Tensor]] = [[] for _ in ids]
    for item in items:
        held[item.row].append(item.slots)
    packed = samples_of(kwargs) if state is None else None
    rows = Rows(mask, held, None if packed is None else packed.cpu())
    answers = owner.answers(ids.shape)
    allocations = [owner.allocation(item.input.count) for item in items]

    clock = owner.record.clock
    clock.start("reduce")
    keeps = [allocation.keep for allocation in allocations]
    after = rows.after_visual(answers)
    text = [rows.beside(item.row, item.slots, after[item.row]).to(device) for item in items]
    reductions, features = _reductions(owner, items, keeps, embeds, text)
    clock.stop("reduce")

    clock.start("plan")
    new_rows, back, dense_homes = rows, None, homes
    ends = homes.masked_fill(~mask.to(device)[..., None], 0).amax((1, 2)).ceil() + 1
    asking = rows.queries("last", answers)
    query_rows = owner.method.query_rows
    if query_rows != "last":
        asking = rows.queries("all", answers)
    deepstack = _deepstack(kwargs, items)
    if keeps != [item.input.count for item in items]:
        new_rows, index, back = rows.after(split(rows, reductions))
        embeds, homes = take(embeds, index), take(homes, index)
        places = [(row, s.to(device)) for row, slots in enumerate(new_rows.slots) for s in slots]
        embeds = write(embeds, places, features)
        asking = [back[row, one].unique() for row, one in enumerate(asking)]
        after = [back[row, one].unique() for row, one in enumerate(after)]
        sizes = [torch.ones(item.input.count, device=device).long() for item in items]
        deepstack = follow_deepstack(deepstack, reductions, sizes)
    table = positions_after(
        owner, items, rows, new_rows, ids, reductions, state, dense_homes, homes, ends, past
    )
    valid = new_rows.mask.to(device)
    first = past if state is None else state.length
    prompt = Prompt(
        items=items,
        rows=new_rows,
        asking=asking,
        after=after,
        first=reductions,
        counts=[allocation.counts for allocation in allocations],
        stage_layers=frozenset(layer for a in allocations for layer, _ in a.schedule),
        positions=[
            table.positions[row, first + slots]
            for row, every in enumerate(new_rows.slots)
            for slots in every
        ],
        deepstack=deepstack,
        before=(state, past),
        text=int(rows.text().sum()),
    )
    if query_rows == "salient":
        prompt.asking = _salient(owner, prompt, embeds)
    layers = [0] if state is None else list(state.valid)
    new = State(
        {n: torch.cat([prompt.seen_before(n, valid), valid], dim=1) for n in layers},
        valid[:, :0],
        dense + ids.shape[1],
        mask.sum(1).to(device) + (past if state is None else state.real),
        table.next_position,
        _loose(new_rows),
    )
    if new_rows.samples is not None:
        new.samples = {0: new_rows.samples.to(device)}
    if owner.proportional_attention or (state is not None and state.bias):
        new.bias = {n: with_bias(prompt, n, valid) for n in layers}
    places_of = torch.arange(first, first + embeds.shape[1], device=device)
    arguments: dict[str, Any] = {
        "inputs_embeds": embeds,
        "attention_mask": None if new.samples else new.seen(0).long(),
        "position_ids": places_of.expand(len(embeds), -1),
    }
    if deepstack:
        arguments |= {"visual_pos_masks": None, "deepstack_visual_embeds": None}
    clock.stop("plan")
    return Pass(new, arguments, table, prompt, back)


def _placed(owner: Compression, ids: Tensor, mask: Tensor) -> list[Placed]:
    """The visual inputs of a prompt, in order of rows and of places in them."""
    found = []
    for kind in owner.adapter.kinds:
        here = (ids == owner.adapter.placeholder(kind)) & mask
        totals = here.sum(1).tolist()
        if not any(totals):
            continue
        encoded = owner.encoded.get(kind)
        if encoded is None or encoded.projected is None:
            raise ValueError(
                f"the features of the {kind}s were made before this compression was attached: "
                "call the model or generate with pixel values"
            )
        if owner.adapter.one_run_one_input:
            runs = [_runs(row) for row in here[:: encoded.times(totals)]]
            encoded = encoded.joined([run for row in runs for run in row])
        for row, held in enumerate(encoded.rows(totals)):
            lengths = [encoded.inputs[i].count for i in held]
            slots = here[row].nonzero().flatten().split(lengths)
            found += [Placed(row, s, encoded, i) for s, i in zip(slots, held, strict=True)]
    return sorted(found, key=lambda item: (item.row, int(item.slots[0])))


def _runs(row: Tensor) -> list[int]:
    values, lengths = torch.unique_consecutive(row, return_counts=True)
    return lengths[values].tolist()


def _reductions(
    owner: Compression,
    items: list[Placed],
    keeps: list[int],
    embeds: Tensor,
    text: list[Tensor],
) -> tuple[list[Reduction], list[Tensor]]:
    """The reduction of each item before the language model, and its rows, (M, D).

    text: for each item, the places of the text after it.
    """
    device = embeds.device
    found = [embeds[item.row, item.slots.to(device)] for item in items]
    made = [item.encoded.projected[item.index] for item in items]  # type: ignore[index]
    fresh = torch.cat([x.detach().to(device, embeds.dtype) for x in made])
    if not torch.equal(torch.cat(found).detach(), fresh):
        raise ValueError(
            "the visual features in the prompt are not those that the vision side made last "
            "under this compression: encode and use visual inputs in the same call"
        )
    # Rows that generate repeats hold the same inputs, which are reduced once.
    first: dict[tuple[str, int], int] = {}
    for number, item in enumerate(items):
        if item.encoded.reductions is None:
            first.setdefault((item.encoded.kind, item.index), number)
    late = list(first.values())
    queries = None
    if "text_query" in owner.method.needs | owner.method.wants:
        queries = [embeds[items[n].row, text[n]] for n in late]
    names = set.intersection(*(set(items[n].encoded.fields) for n in late)) if late else set()
    reduced = reduce_inputs(
        owner.method,
        [items[n].input for n in late],
        [found[n] for n in late],
        [keeps[n] for n in late],
        {name: [items[n].encoded.fields[name][items[n].index] for n in late] for name in names},
        owner.generator,
        queries,
    )
    by_input = dict(zip(first, reduced, strict=True))
    reductions, rows = [], []
    for item, x in zip(items, found, strict=True):
        if item.encoded.reductions is None:
            reductions.append(by_input[item.encoded.kind, item.index])
            rows.append(reductions[-1].features[0])
        else:
            reductions.append(item.encoded.reductions[item.index])
            carriers = item.encoded.carriers
            slots = reductions[-1].anchor[0] if carriers is None else carriers[item.index]
            rows.append(x[slots.to(device)])
    return reductions, rows


def _deepstack(kwargs: dict[str, Any], items: list[Placed]) -> list[list[Tensor]]:
    """For each of the first layers what the model adds to each item's tokens after it."""
    layers, mask = kwargs.get("deepstack_visual_embeds"), kwargs.get("visual_pos_masks")
    if layers is None or mask is None:
        return []
    order = (mask.flatten().cumsum(0) - 1).reshape(mask.shape)
    places = [order[item.row, item.slots.to(mask.device)] for item in items]
    return [[x[place.to(x.device)] for place in places] for x in layers]


def _salient(owner: Compression, prompt: Prompt, embeds: Tensor) -> list[Tensor]:
    """Places of the text tokens that the method finds salient, by row."""
    chosen = []
    rows = prompt.rows
    for row, inputs in enumerate(rows.slots):
        places = [prompt.asking[row]] if not inputs else []
        # Each sample's text with its visual inputs; rows hold one sample, if they are not packed.
        for mine in rows.each(row) if inputs else []:
            slots = [s for s in inputs if len(rows.beside(row, mine, s[:1]))]
            after = rows.beside(row, mine, prompt.after[row])
            if not slots or not len(after):
                places.append(rows.beside(row, mine, prompt.asking[row]))
                continue
            visual = embeds[row, torch.cat(slots).to(embeds.device)]
            text = embeds[row, after.to(embeds.device)]
            marked = owner.method.salient_rows(text[None], visual[None])[0].cpu()
            places.append(after[marked] if bool(marked.any()) else after[-1:])
        chosen.append(torch.cat(places).unique())
    return chosen


def _homes(
    given: Tensor | None, embeds: Tensor, mask: Tensor, state: State | None, past: int
) -> Tensor:
    """(B, S, 3) float64: where the stock model would place each token."""
    if given is not None:
        return given
    if state is not None:
        places = state.following[:, None] + mask.cumsum(1) - 1
    else:
        index = torch.arange(past, past + embeds.shape[1], device=embeds.device)
        places = index.double().expand(len(embeds), -1)
    return places[..., None].expand(-1, -1, 3)


def _loose(rows: Rows) -> int:
    """Columns at the end that are text in every row."""
    ends = [max((int(s.max()) for s in slots if len(s)), default=-1) for slots in rows.slots]
    return int(rows.mask.shape[1] - 1 - max(ends))
