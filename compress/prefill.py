"""One forward of the language model under a compression: what goes in, what each layer sees."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask

from compress.encoded import Encoded, grouped, reduce_inputs
from compress.rows import Rows
from compress.scores import take, text_attention
from compress.tokens import Grid, LayerTokens, Reduction
from positions import Image, PositionTable, Scheme, Video, plan
from positions.layout import layout_of

if TYPE_CHECKING:
    from compress.attach import Compression
    from vlm.families import Family


@dataclass
class State:
    """What the forwards after a reduced prompt have to know; bound to the cache.

    table: positions of every cached token, by physical index in the first layer.
    valid: for each stage, by its first decoder layer, (B, L) bool, False at padding, of the tokens
        that its layers cached in prefill. tail: (B, t) bool, the same of tokens that came after.
    dense: how many tokens the sequence would have without reduction, padding included.
    """

    table: PositionTable
    valid: dict[int, Tensor]
    tail: Tensor
    dense: int

    @property
    def length(self) -> int:
        """Tokens that the first layer has cached."""
        return self.valid[0].shape[1] + self.tail.shape[1]

    def seen(self, layer: int) -> Tensor:
        """(B, cached tokens) int64 attention mask of decoder layer `layer`."""
        stage = max(first for first in self.valid if first <= layer)
        return torch.cat([self.valid[stage], self.tail], dim=1).long()

    @property
    def following(self) -> Tensor:
        """(B,) float64: where the next text token stands."""
        return self.table.next_position + self.tail.shape[1]

    def then(self, later: PositionTable) -> PositionTable:
        """This state's positions, its tail's, and those of `later`, in one table."""
        table = self.table
        steps = torch.arange(self.tail.shape[1], device=table.positions.device)
        tail = (table.next_position[:, None] + steps)[..., None, None]
        slots = max(table.slots, later.slots)
        parts = (table.positions, tail, later.positions)
        joined = torch.cat([part.expand(-1, -1, slots, 3) for part in parts], dim=1)
        return replace(later, positions=joined, exact=table.exact | later.exact)

    def go_on(self, kwargs: dict[str, Any]) -> Pass:
        """A forward on the cache with text alone: decoding, or a second turn."""
        embeds: Tensor = kwargs["inputs_embeds"]
        rows, q = embeds.shape[:2]
        new = chunk_mask(kwargs.get("attention_mask"), rows, q, self.dense, embeds.device)
        index = torch.arange(self.length, self.length + q, device=embeds.device)
        self.tail = torch.cat([self.tail, new], dim=1)
        self.dense += q
        arguments = {"attention_mask": self.seen(0), "position_ids": index.expand(rows, -1)}
        return Pass(self, arguments, prefill=False)


@dataclass
class Pass:
    """One forward. `arguments` replace those of the language model, `given` those of layers.

    past: the state before a prompt on a cache that holds a reduced one, and how many tokens the
    cache had.
    """

    state: State
    arguments: dict[str, Any]
    prefill: bool
    past: tuple[State | None, int] = (None, 0)
    rows: Rows | None = None
    back: Tensor | None = None
    inputs: list[list[int]] = field(default_factory=list)
    labels: Tensor | None = None
    stage_layers: frozenset[int] = frozenset()
    reductions: list[Reduction] = field(default_factory=list)
    first: list[Reduction] = field(default_factory=list)
    text: int = 0
    grids: list[Grid] = field(default_factory=list)
    stages: list[tuple[int, list[Reduction]]] = field(default_factory=list)
    given: dict[str, Any] = field(default_factory=dict)

    def for_stage(
        self, number: int, family: Family, kwargs: dict[str, Any], hidden: Tensor
    ) -> dict[str, Any]:
        """What the layers from `number` on are given in place of the model's own arguments."""
        mask, q = self.state.seen(number), hidden.shape[1]
        causal = create_causal_mask(
            config=family.language_model.config,
            inputs_embeds=hidden,
            attention_mask=mask,
            past_key_values=kwargs.get("past_key_values"),
            position_ids=None,
            layer_idx=number,
        )
        place = torch.arange(mask.shape[1] - q, mask.shape[1], device=mask.device)[None]
        rotary = kwargs["position_embeddings"]
        return {"attention_mask": causal, "position_ids": place, "position_embeddings": rotary}


def chunk_mask(mask: Any, rows: int, q: int, dense: int, device: Any) -> Tensor:
    """(B, q) bool: which of the new tokens are real, from whatever mask the model was given.

    Raises ValueError where a two-dimensional mask does not span `dense` old and `q` new tokens.
    """
    if mask is None:
        return torch.ones(rows, q, dtype=torch.bool, device=device)
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        raise ValueError(
            f"attention_mask is {type(mask).__name__}: expected a tensor of two dimensions"
        )
    if mask.ndim == 4:  # a static cache: the last query sees every real token
        last = mask[:, 0, -1, dense : dense + q]
        return last if last.dtype == torch.bool else last == 0
    if mask.shape[1] != dense + q:
        raise ValueError(
            f"attention_mask spans {mask.shape[1]} tokens, but {dense} came before (counted dense) "
            f"and {q} are new. On a cache that was filled under a compression pass the new ids "
            f"only, with an attention mask over all {dense + q} tokens of the dense sequence"
        )
    return mask[:, dense:].bool().to(device)


def begin(
    owner: Compression, kwargs: dict[str, Any], ids: Tensor, visual: Tensor, state: State | None
) -> Pass:
    """Reduce a prompt before the language model; `kwargs` are the language model's."""
    embeds: Tensor = kwargs["inputs_embeds"]
    device = embeds.device
    cache = kwargs.get("past_key_values")
    past = 0 if cache is None else int(cache.get_seq_length())
    dense = state.dense if state else past
    encoded: Encoded = owner.encoded  # type: ignore[assignment]
    if ids.shape != embeds.shape[:2]:
        raise ValueError(
            f"input_ids {tuple(ids.shape)} and inputs_embeds {tuple(embeds.shape)} do not match"
        )
    batch, length = ids.shape
    mask = chunk_mask(kwargs.get("attention_mask"), batch, length, dense, device).cpu()
    visual = visual & mask
    inputs = encoded.rows(visual.sum(1).tolist())
    flat = [i for row in inputs for i in row]
    rows = Rows.of(visual, mask, [[encoded.cells[i] for i in row] for row in inputs])
    places = _places(rows, device)
    allocations = [owner.allocation(encoded.cells[i]) for i in flat]

    clock = owner.record.clock
    clock.start("reduce")
    found = [embeds[row, slots] for row, slots in places]
    if encoded.reductions is not None:
        _check_fresh(found, flat, encoded)
        reductions = [encoded.reductions[i] for i in flat]
    else:
        queries = None
        if "query" in owner.method.needs | owner.method.wants:
            queries = [
                embeds[row, text]
                for row, text in enumerate(_text(rows, device))
                for _ in inputs[row]
            ]
        fields = {name: [values[i] for i in flat] for name, values in encoded.fields.items()}
        grids = [encoded.grids[i] for i in flat]
        keeps = [allocation.keep for allocation in allocations]
        reductions = reduce_inputs(
            owner.method, found, grids, keeps, fields, owner.generator, queries
        )
    clock.stop("reduce")

    clock.start("plan")
    counts = [allocation.keep for allocation in allocations]
    whole = counts == [len(slots) for _, slots in places]
    new_rows, back = rows, None
    homes = _homes(kwargs.get("position_ids"), embeds, state, past)
    ends = homes.masked_fill(~mask.to(device)[..., None], 0).amax((1, 2)).ceil() + 1
    if not whole:
        new_rows, index, back = rows.after(_split(reductions, inputs))
        embeds, homes = take(embeds, index), take(homes, index)
        if encoded.reductions is None:
            for (row, slots), reduction in zip(_places(new_rows, device), reductions, strict=True):
                embeds = embeds.index_put(
                    (torch.tensor(row, device=device), slots),
                    reduction.features[0].to(embeds.dtype),
                )
    if owner.positions == "compact":
        first = state.following if state else torch.zeros(len(homes), dtype=torch.float64)
        count = new_rows.mask.cumsum(1).to(device)
        homes = (first.to(device)[:, None] + count - 1)[..., None].expand(-1, -1, 3)
        ends = homes.amax((1, 2)) + 1
    if not isinstance(owner.positions, str):
        table = _planned(owner, rows, new_rows, ids, inputs, reductions, state)
    else:
        exact = torch.zeros(len(homes), dtype=torch.bool, device=device)
        table = PositionTable(homes[:, :, None], ends, exact)
    valid = new_rows.mask.to(device)
    layers = [0] if state is None else list(state.valid)
    new = State(
        table if state is None else state.then(table),
        {layer: torch.cat([_past(state, past, layer, valid), valid], 1) for layer in layers},
        valid[:, :0],
        dense + ids.shape[1],
    )
    length = new.length
    arguments = {
        "inputs_embeds": embeds,
        "attention_mask": new.seen(0),
        "position_ids": torch.arange(length - embeds.shape[1], length, device=device).expand(
            len(embeds), -1
        ),
    }
    clock.stop("plan")
    return Pass(
        new,
        arguments,
        prefill=True,
        past=(state, past),
        rows=new_rows,
        back=back,
        inputs=inputs,
        labels=_kept_labels(owner, rows, new_rows, back),
        stage_layers=frozenset(layer for a in allocations for layer, _ in a.schedule.stages),
        reductions=reductions,
        first=reductions,
        text=int((rows.mask & ~visual).sum()),
        grids=[encoded.grids[i] for i in flat],
    )


def _places(rows: Rows, device: torch.device) -> list[tuple[int, Tensor]]:
    """(row, places) of every visual input of the batch, in order."""
    return [(row, s.to(device)) for row, slots in enumerate(rows.slots) for s in slots]


def _text(rows: Rows, device: torch.device) -> list[Tensor]:
    """Places of each row's text tokens that follow its first visual one."""
    where, real = rows.queries("all", None)
    return [w[r].to(device) for w, r in zip(where, real, strict=True)]


def _split(reductions: list[Reduction], inputs: list[list[int]]) -> list[list[Tensor]]:
    """Anchors of each row's inputs, on the host."""
    anchors = iter([reduction.anchor[0].cpu() for reduction in reductions])
    return [[next(anchors) for _ in row] for row in inputs]


def _check_fresh(found: list[Tensor], flat: list[int], encoded: Encoded) -> None:
    for rows, i in zip(found, flat, strict=True):
        made = encoded.projected[i]
        if not torch.equal(rows.detach(), made.detach().to(rows.device, rows.dtype)):
            raise ValueError(
                "the visual features in the prompt are not those that the vision side made last "
                "under this compression: encode and use visual inputs in the same call"
            )


def _homes(given: Any, embeds: Tensor, state: State | None, past: int) -> Tensor:
    """(B, S, 3) float64: where the stock model would place each token, on t, h and w."""
    rows, length = embeds.shape[:2]
    if given is None:
        first = past if state is None else 0
        given = torch.arange(first, first + length, device=embeds.device).expand(rows, -1)
        if state is not None:
            given = given + state.following[:, None]
    if given.ndim == 3:  # (3, B, S), or (4, B, S) with a row of text positions in front
        return given[-3:].permute(1, 2, 0).double().expand(rows, -1, -1)
    return given.double().expand(rows, -1)[..., None].expand(-1, -1, 3)


def _past(state: State | None, past: int, layer: int, like: Tensor) -> Tensor:
    """(B, P) bool: what decoder layer `layer` had cached before this prompt."""
    if state is None:
        return like.new_ones(len(like), past)
    return state.seen(layer).bool()


def _planned(
    owner: Compression,
    before: Rows,
    after: Rows,
    ids: Tensor,
    inputs: list[list[int]],
    reductions: list[Reduction],
    state: State | None,
) -> PositionTable:
    encoded: Encoded = owner.encoded  # type: ignore[assignment]
    scheme: Scheme = owner.positions  # type: ignore[assignment]
    each = iter(reductions)
    plans = []
    for row, held in enumerate(inputs):
        visual = [_segment(encoded.grids[i]) for i in held]
        real = ids[row].cpu()[before.mask[row]].clone()
        one, *others = owner.family.placeholders
        for other in others:
            real[real == other] = one
        segments, keys = layout_of(real, {one: visual})
        start = float(state.following[row]) if state else 0.0
        mine = {key: _on_host(next(each)) for key in keys}
        dense = plan(segments, scheme, start=start)
        plans.append(dense.after(mine))
    return PositionTable.from_plans(plans, after.mask, device=ids.device)


def _segment(grid: Grid) -> Image | Video:
    return Image(grid[1:]) if grid[0] == 1 else Video(grid)


def _on_host(reduction: Reduction) -> Reduction:
    assign, anchor, size = reduction.assign[0], reduction.anchor[0], reduction.size[0]
    return Reduction(reduction.features[0], assign.cpu(), anchor.cpu(), size.cpu())


def _kept_labels(owner: Compression, rows: Rows, new: Rows, back: Tensor | None) -> Tensor | None:
    """Labels of the tokens that stay, so that training queries can be told from answers."""
    labels = owner._labels
    if labels is None or back is None:
        return None if labels is None else labels.cpu()
    kept = torch.full(new.mask.shape, -100)
    text = rows.mask & ~rows.visual()
    for row in range(len(kept)):
        kept[row, back[row, text[row]]] = labels[row].cpu()[text[row]]
    return kept


def enter_stage(
    owner: Compression, going: Pass, number: int, hidden: Tensor, kwargs: dict[str, Any]
) -> Tensor:
    """Reduce the visual tokens that are about to enter decoder layer `number`."""
    rows: Rows = going.rows  # type: ignore[assignment]
    clock = owner.record.clock
    clock.start("reduce")
    counts = [owner.allocation(_cells(grid)).counts[number] for grid in going.grids]
    places = _places(rows, hidden.device)
    if counts == [len(slots) for _, slots in places]:
        clock.stop("reduce")
        return hidden
    schedule = owner.allocation(_cells(going.grids[0])).schedule
    scores = keys = None
    if owner.method.inside_needs & {"scores", "keys"} and any(counts):
        where, real = rows.queries(schedule.query, going.labels)
        layer = owner.family.layers[number]
        rotary = kwargs["position_embeddings"]
        scores, keys = text_attention(layer, hidden, rotary, where, real, rows.mask)

    def run(key: tuple[Grid, int, int], members: list[int]) -> list[Reduction]:
        grid, _, count = key
        at = [places[m] for m in members]
        so_far = [going.reductions[m] for m in members]

        def pick(x: Tensor) -> Tensor:
            return torch.stack([x[row, slots] for row, slots in at])

        tokens = LayerTokens(
            pick(hidden),
            torch.cat([r.size for r in so_far]),
            torch.cat([r.anchor for r in so_far]),
            grid,
            scores=None if scores is None else pick(scores),
            keys=None if keys is None else pick(keys),
        )
        reduced = owner.method.inside(tokens, count, owner.generator)
        return [reduced.select(b) for b in range(len(members))]

    shapes = [
        (grid, len(slots), c)
        for grid, (_, slots), c in zip(going.grids, places, counts, strict=True)
    ]
    reductions = grouped(shapes, run)
    kept = _split(reductions, going.inputs)
    going.rows, index, back = rows.after(kept)
    shorter = take(hidden, index)
    if schedule.mode == "merge":
        for (row, slots), r in zip(_places(going.rows, hidden.device), reductions, strict=True):
            shorter = shorter.index_put(
                (torch.tensor(row, device=hidden.device), slots), r.features[0].to(hidden.dtype)
            )
    going.back = back if going.back is None else back.gather(1, going.back)
    if going.labels is not None:
        going.labels = going.labels.gather(1, index).masked_fill(~going.rows.mask, -100)
    going.reductions = [a.then(b) for a, b in zip(going.reductions, reductions, strict=True)]
    going.stages.append((number, going.reductions))
    cos, sin = kwargs["position_embeddings"]
    kwargs["position_embeddings"] = (take(cos, index), take(sin, index))
    valid = going.rows.mask.to(hidden.device)
    for layer in {number, *(later for later in going.state.valid if later > number)}:
        going.state.valid[layer] = torch.cat([_past(*going.past, layer, valid), valid], 1)
    clock.stop("reduce")
    return shorter


def _cells(grid: Grid) -> int:
    return grid[0] * grid[1] * grid[2]
