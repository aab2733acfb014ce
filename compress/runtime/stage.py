"""One forward of the language model under a compression, and the stages of its schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compress.runtime.encoded import Encoded
from compress.runtime.rows import Rows, padded
from compress.runtime.scores import Asked, take, text_attention
from compress.runtime.state import State, causal_mask
from compress.runtime.views import grouped, pooled
from compress.tokens import Grid, LayerTokens, Reduction
from positions import PositionTable
from vlm.families import ModelAdapter, VisualInput

if TYPE_CHECKING:
    from compress.runtime.attach import Compression


@dataclass(frozen=True)
class Placed:
    """A visual input in its prompt: the batch's row, and (N,) int64 places of its tokens there."""

    row: int
    slots: Tensor
    encoded: Encoded
    index: int

    @property
    def input(self) -> VisualInput:
        return self.encoded.inputs[self.index]


@dataclass
class Prompt:
    """The visual inputs of a prompt, and what became of them so far.

    items: in order of rows and of places in them. rows: where the tokens are now. asking, after:
    for each row, the places now of the tokens that rank the visual ones, and of the text after
    them. first: the reductions before the language model; now: with those of the stages so far;
    stages: those after each stage, by decoder layer. schedules: of each item. positions: (M, K, 3)
    float64 of each item's tokens that enter the language model. deepstack: for each of the first
    layers, what is added to each item's tokens after it. before: the state that the cache came
    with, and its length. text: text tokens of the batch.
    """

    items: list[Placed]
    rows: Rows
    asking: list[Tensor]
    after: list[Tensor]
    first: list[Reduction]
    counts: list[tuple[int, ...]]
    stage_layers: frozenset[int]
    positions: list[Tensor]
    deepstack: list[list[Tensor]]
    before: tuple[State | None, int]
    text: int
    now: list[Reduction] = field(default_factory=list)
    stages: list[tuple[int, list[Reduction]]] = field(default_factory=list)
    entered: tuple[Tensor, Any] | None = None

    def __post_init__(self) -> None:
        self.now = self.first

    @property
    def grids(self) -> list[Grid]:
        """The dense grid of each item."""
        return [item.input.grid for item in self.items]

    def seen_before(self, layer: int, like: Tensor) -> Tensor:
        """(B, P) bool: what decoder layer `layer` had cached before this prompt."""
        state, past = self.before
        return like.new_ones(len(like), past) if state is None else state.seen(layer)

    def places(self, device: torch.device) -> list[tuple[int, Tensor]]:
        """(row, places now) of every item, in order."""
        return [(row, s.to(device)) for row, slots in enumerate(self.rows.slots) for s in slots]


@dataclass
class Pass:
    """One forward. `arguments` replace those of the language model, `given` those of layers.

    prompt: None where no visual input comes with this forward. back: (B, S) int64, for each token
    that the model was given the one that stands for it now; None while all are there.
    """

    state: State
    arguments: dict[str, Any]
    table: PositionTable
    prompt: Prompt | None = None
    back: Tensor | None = None
    given: dict[str, Any] = field(default_factory=dict)

    def needs_mask(self, number: int) -> bool:
        """Whether the mask that the language model made does not serve from layer `number` on."""
        if number == 0:
            return bool(self.state.bias or self.state.samples) or self.state.pressed
        return number in self.state.valid or self.state.pressed

    def mask_from(
        self, number: int, adapter: ModelAdapter, kwargs: dict[str, Any], h: Tensor
    ) -> None:
        """Set what the layers from `number` on are given in place of the model's own arguments."""
        cache = kwargs.get("past_key_values")
        mask, index = causal_mask(adapter, self.state, number, h, cache)
        rotary = kwargs["position_embeddings"]
        self.given = {"attention_mask": mask, "position_ids": index, "position_embeddings": rotary}


def add_deepstack(prompt: Prompt, number: int, hidden: Tensor) -> Tensor:
    """What the model adds to visual tokens after decoder layer `number - 1`."""
    if not 0 < number <= len(prompt.deepstack):
        return hidden
    added = torch.zeros_like(hidden)
    return hidden + write(added, prompt.places(hidden.device), prompt.deepstack[number - 1])


def follow_deepstack(
    layers: Sequence[list[Tensor]], reductions: Sequence[Reduction], sizes: Sequence[Tensor]
) -> list[list[Tensor]]:
    """DeepStack's features after the tokens that they belong to were reduced."""
    return [
        [
            pooled(x, reduction, size)
            for x, reduction, size in zip(layer, reductions, sizes, strict=True)
        ]
        for layer in layers
    ]


def bias_of(prompt: Prompt, like: Tensor) -> Tensor:
    """(B, M) float32: log of the cells in each visual token, 0 at text."""
    bias = torch.zeros(like.shape, device=like.device)
    for (row, places), reduction in zip(prompt.places(like.device), prompt.now, strict=True):
        bias[row, places] = reduction.size[0].to(like.device).float().log()
    return bias


def enter_stage(
    owner: Compression, going: Pass, number: int, hidden: Tensor, kwargs: dict[str, Any]
) -> Tensor:
    """Reduce the visual tokens that are about to enter decoder layer `number`."""
    prompt: Prompt = going.prompt  # type: ignore[assignment]
    counts = [every[number] for every in prompt.counts]
    places = prompt.places(hidden.device)
    if counts == [len(slots) for _, slots in places]:
        return hidden
    scored, keys = _scored(owner, going, number, hidden, kwargs, counts)
    needs = owner.method.in_llm_needs

    def run(key: tuple[Grid, int, int], members: list[int]) -> list[Reduction]:
        grid, _, count = key
        at = [places[m] for m in members]
        so_far = [prompt.now[m] for m in members]

        def pick(x: Tensor | None) -> Tensor | None:
            return None if x is None else torch.stack([x[row, slots] for row, slots in at])

        given: dict[str, Any] = {"scores": pick(scored), "keys": pick(keys)}
        if needs & {"text", "text_keys", "text_mask"} and count:
            slots = [slots.cpu() for _, slots in at]
            near = [
                prompt.rows.beside(row, mine, prompt.after[row])
                for (row, _), mine in zip(at, slots, strict=True)
            ]
            where, real = padded(near)
            owners = torch.tensor([row for row, _ in at], device=hidden.device)
            where, real = where.to(hidden.device), real.to(hidden.device)
            given |= {"text": take(hidden[owners], where), "text_mask": real}
            if keys is not None:
                given["text_keys"] = take(keys[owners], where)
        tokens = LayerTokens(
            pick(hidden),  # type: ignore[arg-type]
            torch.cat([r.size for r in so_far]).to(hidden.device),
            torch.cat([r.anchor for r in so_far]).to(hidden.device),
            grid,
            **given,
        )
        reduced = owner.method.reduce_in_llm(tokens, count, owner.generator)
        return [reduced.sample(b) for b in range(len(members))]

    shapes = [
        (grid, len(slots), count)
        for grid, (_, slots), count in zip(prompt.grids, places, counts, strict=True)
    ]
    reductions = grouped(shapes, run)
    return _shorten(owner, going, number, hidden, kwargs, reductions)


def _scored(
    owner: Compression,
    going: Pass,
    number: int,
    hidden: Tensor,
    kwargs: dict[str, Any],
    counts: list[int],
) -> tuple[Tensor | None, Tensor | None]:
    """Scores (B, S) and keys (B, S, Dk) of every token, as far as the method needs them."""
    prompt: Prompt = going.prompt  # type: ignore[assignment]
    if not any(counts) or not owner.method.in_llm_needs & {"scores", "keys", "text_keys"}:
        return None, None
    layer, entered, rotary = number, hidden, kwargs["position_embeddings"]
    if owner.method.scored_by == "previous":
        layer = number - 1
        entered, rotary = prompt.entered  # type: ignore[misc]
    where, real = padded(prompt.asking)
    mask = prompt.rows.mask.to(hidden.device)
    old = prompt.seen_before(layer, mask)
    past = _past_keys(kwargs.get("past_key_values"), layer, old)
    bias = going.state.weights(layer)
    asked = Asked(where, real, mask, old, past, bias, prompt.rows.samples)
    return text_attention(owner.adapter.layers[layer], entered, rotary, asked)


def _past_keys(cache: Any, layer: int, old: Tensor) -> Tensor | None:
    """(B, key heads, P, head_dim): rotated keys that `layer` had cached before this prompt."""
    if not old.shape[1]:
        return None
    keys = getattr(cache.layers[layer], "keys", None)
    if not isinstance(keys, Tensor) or keys.ndim != 4 or keys.shape[2] < old.shape[1]:
        raise ValueError(
            f"{type(cache).__name__} does not show the keys that it holds: visual inputs in a "
            "second turn cannot be ranked on it; use a DynamicCache"
        )
    return keys[:, :, : old.shape[1]]


def _shorten(
    owner: Compression,
    going: Pass,
    number: int,
    hidden: Tensor,
    kwargs: dict[str, Any],
    reductions: list[Reduction],
) -> Tensor:
    """Let only the rows of `reductions` go on; everything that runs along the tokens follows."""
    prompt: Prompt = going.prompt  # type: ignore[assignment]
    prompt.rows, index, back = prompt.rows.after(split(prompt.rows, reductions))
    shorter = take(hidden, index)
    places = prompt.places(hidden.device)
    shorter = write(shorter, places, [reduction.features[0] for reduction in reductions])
    going.back = back if going.back is None else back.gather(1, going.back)
    prompt.asking = [back[row, places].unique() for row, places in enumerate(prompt.asking)]
    prompt.after = [back[row, places].unique() for row, places in enumerate(prompt.after)]
    rest = prompt.deepstack[number:]
    if rest:
        sizes = [reduction.size[0].to(hidden.device) for reduction in prompt.now]
        prompt.deepstack[number:] = follow_deepstack(rest, reductions, sizes)
    prompt.now = [
        a.then(b) if a.count else a
        for a, b in zip(_on(prompt.now, hidden), reductions, strict=True)
    ]
    prompt.stages.append((number, prompt.now))
    cos, sin = kwargs["position_embeddings"]
    kwargs["position_embeddings"] = (take(cos, index), take(sin, index))
    _note_stage(owner, going, number, hidden.device)
    return shorter


def _note_stage(owner: Compression, going: Pass, number: int, device: torch.device) -> None:
    """Write down what the layers from `number` on have of this prompt."""
    prompt, state = going.prompt, going.state
    valid = prompt.rows.mask.to(device)  # type: ignore[union-attr]
    for layer in sorted({number, *(later for later in state.valid if later > number)}):
        old = prompt.seen_before(layer, valid)  # type: ignore[union-attr]
        state.valid[layer] = torch.cat([old.to(device), valid], dim=1)
        if prompt.rows.samples is not None:  # type: ignore[union-attr]
            state.samples[layer] = prompt.rows.samples.to(device)  # type: ignore[union-attr]
        if owner.proportional_attention:
            state.bias[layer] = with_bias(prompt, layer, valid)  # type: ignore[arg-type]


def with_bias(prompt: Prompt, layer: int, valid: Tensor) -> Tensor:
    """(B, P + M) float32: what `layer` adds to the logits of cached and new keys."""
    state, past = prompt.before
    old = None if state is None else state.weights(layer)
    if old is None:
        old = torch.zeros(len(valid), past, device=valid.device)
    return torch.cat([old.to(valid.device), bias_of(prompt, valid)], dim=1)


def split(rows: Rows, reductions: Sequence[Reduction]) -> list[list[Tensor]]:
    """Anchors of each row's inputs, on the host."""
    counts = [reduction.count for reduction in reductions]
    if not counts:
        return [[] for _ in rows.slots]
    every = torch.cat([reduction.anchor[0] for reduction in reductions]).cpu()
    anchors = iter(every.split(counts))
    return [[next(anchors) for _ in row] for row in rows.slots]


def write(x: Tensor, places: Sequence[tuple[int, Tensor]], features: Sequence[Tensor]) -> Tensor:
    """x (B, M, D) with the rows of each item, (m, D), at its places in its row of the batch."""
    if not places:
        return x
    rows = torch.cat([torch.full_like(slots, row) for row, slots in places])
    slots = torch.cat([slots for _, slots in places])
    return x.index_put((rows, slots), torch.cat([f.to(x.device, x.dtype) for f in features]))


def _on(reductions: Sequence[Reduction], like: Tensor) -> list[Reduction]:
    """The same maps on the device of `like`."""
    device = like.device
    return [
        Reduction(
            r.features,
            r.assign.to(device),
            r.anchor.to(device),
            r.size.to(device),
            tuple(level.to(device) for level in r.more),
        )
        for r in reductions
    ]
