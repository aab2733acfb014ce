"""One forward under a compression: what the hooks on the model's modules do.

door               the outermost module that is called: a context is made, and dropped at the end
core (pre)         token ids are read where visual inputs come; text on a known cache is placed
language model     a prompt with visual inputs is reduced; its arguments are replaced
decoder layers     visual tokens leave at the layers of the schedule; later layers get their own
                   mask, cos and sin
final norm (pre)   hidden states get their old length back, so that labels stay aligned
core (post)        the state that later forwards need is bound to the cache; the record is made
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from compress.errors import CompressionError
from compress.report.record import PrefillRecord, cache_bytes
from compress.runtime.cache_state import (
    ONLY_NEW,
    CacheState,
    cache_length,
    is_static,
    new_tokens_mask,
    positions_of,
    turn_positions,
)
from compress.runtime.calibrated import distance_terms
from compress.runtime.context import ForwardContext
from compress.runtime.encoded import PIXELS, Encoded
from compress.runtime.in_llm import add_deepstack, reduce_at_layer, scoring_layers
from compress.runtime.infinite import Far
from compress.runtime.masks import NewTokens, layer_arguments, needs_own_masks
from compress.runtime.prefill import begin_prefill
from compress.runtime.prompt import without_pixels
from compress.runtime.settings import Settings
from compress.runtime.tensors import gather
from compress.runtime.token_positions import text_table
from positions import ChannelTable
from vlm.decoder import cache_of


def read_call(
    context: ForwardContext,
    kwargs: Mapping[str, Any],
    latest: Callable[[str], Encoded | None],
) -> None:
    """The core is called: note what comes, and place text that goes on a known cache.

    latest: gives what this thread encoded last of a kind.

    Raises CompressionError for visual inputs without ids, or made before the compression.
    """
    ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
    context.cache, context.mask = cache_of(kwargs), kwargs.get("attention_mask")
    context.positions_given = kwargs.get("position_ids") is not None
    if context.cache is not None:
        context.state = CacheState.of(context.cache)
    if any(_holds(kwargs.get(name)) for name in context.settings.adapter.media):
        if ids is None:
            raise CompressionError(
                "visual inputs came with inputs_embeds and no input_ids: the places of the visual "
                "tokens are read off the ids, so call the model with input_ids"
            )
        context.ids, context.media = ids, kwargs
        _check_kinds(context, kwargs)
        _read_encoded(context, kwargs.get("mm_encoder_outputs"), latest)
        _check_turn(context)
    elif ids is not None and (context.cache is None or not cache_length(context.cache)):
        _check_no_placeholders(context, ids)
    given = ids if embeds is None else embeds
    if context.state is not None and given is not None:
        context.state.check_rows(len(given))
        context.state.follow(context.cache)
        if context.ids is None and not _placed_by_caller(context, kwargs, given.shape[1]):
            continue_on_cache(context, kwargs, given.shape[1], given.device)


def _check_no_placeholders(context: ForwardContext, ids: Tensor) -> None:
    """Raise CompressionError for a new prompt with placeholders and without visual inputs.

    On a cache a placeholder id is a word like any other, which the model may have said.
    """
    adapter = context.settings.adapter
    tokens = torch.tensor([adapter.placeholder(kind) for kind in adapter.kinds], device=ids.device)
    counts = (ids[..., None] == tokens).flatten(0, 1).sum(0).tolist()
    for kind, count in zip(adapter.kinds, counts, strict=True):
        if count:
            raise without_pixels(kind, count)


def _check_kinds(context: ForwardContext, kwargs: Mapping[str, Any]) -> None:
    """Raise CompressionError for visual inputs of a kind that the adapter does not have."""
    adapter = context.settings.adapter
    encoded = kwargs.get("mm_encoder_outputs") or {}
    for kind, pixels in PIXELS.items():
        if kind not in adapter.kinds and (
            _holds(kwargs.get(pixels)) or encoded.get(kind) is not None
        ):
            why = adapter.refuses.get(kind)
            raise CompressionError(
                f"{kind}s of family {adapter.name!r} are not reduced"
                f"{'' if why is None else f' ({why})'}: expected "
                f"{' and '.join(f'{one}s' for one in adapter.kinds)} alone, or frames as images"
            )


def _check_turn(context: ForwardContext) -> None:
    """Raise CompressionError where `generate` was given full ids with pixels on a known cache: it
    cuts off as many ids as the cache holds, and with them placeholders."""
    state, ids = context.state, context.ids
    if state is None or ids is None:
        return
    for kind, encoded in context.encoded.items():
        count = int((ids == context.settings.adapter.placeholder(kind)).sum())
        if count % sum(encoded.counts) or not count:
            raise CompressionError(
                f"{count} {kind} placeholder tokens come with features of {sum(encoded.counts)}. "
                f"{ONLY_NEW.format(state.dense + ids.shape[1])}"
            )


def _holds(media: Any) -> bool:
    """Whether an argument brings visual inputs: pixels, or pixels or features by name."""
    if isinstance(media, Mapping):
        return any(value is not None for value in media.values())
    return media is not None


def _read_encoded(
    context: ForwardContext, outputs: Any, latest: Callable[[str], Encoded | None]
) -> None:
    """Take what was encoded before this call, as `generate` does."""
    for kind in context.settings.adapter.kinds:
        output = None if outputs is None else outputs.get(kind)
        if output is None:
            continue
        encoded = Encoded.of(output)
        if encoded is None:  # cut out of the output of the call, for a chunk of the prompt
            encoded = latest(kind)
            if encoded is None or not encoded.is_in(output):
                raise CompressionError(
                    f"the features for the {kind} placeholder tokens are not all that were encoded "
                    "under this compression: pass pixel values (and no prefill_chunk_size that "
                    f"splits a prompt's {kind}s), or call get_{kind}_features while it is attached"
                )
        context.encoded[kind] = encoded


def _placed_by_caller(context: ForwardContext, kwargs: Mapping[str, Any], count: int) -> bool:
    """Whether the positions of new text are those that reach the language model, and have to be
    looked at there: a second turn, or a model that adds the offset of its last prompt."""
    given = kwargs.get("position_ids")
    if given is None or not context.settings.keeps_original:
        return False
    return count > 1 or (given.ndim == 3 and len(given) == 1)


def continue_on_cache(
    context: ForwardContext, kwargs: Mapping[str, Any], count: int, device: torch.device
) -> None:
    """A forward with text alone on a cache: decoding, or a second turn.

    Decoding a batch without padding replaces nothing but the attention mask.
    """
    state: CacheState = context.state  # type: ignore[assignment]
    new = new_tokens_mask(kwargs.get("attention_mask"), state.rows, count, state.dense)
    if count == 1 and new is not None and state.spans[0].valid is None:
        # The stock model looks whether the mask of a decoded token is all ones, too.
        new = None if bool(new.all()) else new
    original = context.settings.keeps_original and context.positions_given
    given = kwargs.get("position_ids") if original else None
    start = state.length
    context.arguments = {"attention_mask": None}
    if given is not None and not _placed_by_caller(context, kwargs, count):
        places = None
        if context.settings.tracks_places:
            places = positions_of(given, state.rows)[..., 0]
        state.extend(count, new, places)
    else:
        positions = _place_text(context, given, new, count)
        state.extend(count, new, positions[..., 0])
        if given is not None:
            real = positions if new is None else positions.masked_fill(~new[..., None], 0)
            state.begin_turn()
            state.next_at = real.amax((1, 2)) + 1
        context.table = text_table(context.settings, positions, start, state.next_position)
        index = torch.arange(start, start + count, device=device).expand(state.rows, -1)
        context.arguments["position_ids"] = index
    _mask_layers(context, count, device)


def _place_text(
    context: ForwardContext, given: Tensor | None, new: Tensor | None, count: int
) -> Tensor:
    """(B, q, 3) float64: where new text tokens stand."""
    state: CacheState = context.state  # type: ignore[assignment]
    if given is not None:
        return turn_positions(state, given, new, context.settings.adapter.deltas)
    steps = torch.arange(count, device=state.next_at.device).expand(state.rows, -1)
    if new is not None:
        steps = new.cumsum(1) - 1
    positions = state.next_position[:, None] + steps
    return positions[..., None].expand(-1, -1, 3)


def _mask_layers(context: ForwardContext, count: int, device: torch.device) -> None:
    """The masks of all layers for new text on a cache; the stock ones where they serve."""
    state: CacheState = context.state  # type: ignore[assignment]
    settings, cache = context.settings, context.cache
    static, adapter = is_static(cache), settings.adapter
    implementation = settings.attention_implementation
    maskless = implementation == "sdpa" or implementation.startswith("flash")
    reduced_reach = settings.infinite is not None or (
        settings.is_local and needs_own_masks(adapter, state.dense)
    )
    if state.plain and count == 1 and not static and maskless and not reduced_reach:
        return
    dtype = next(adapter.norm.parameters()).dtype
    like = torch.empty(state.rows, count, 0, dtype=dtype, device=device)
    first = state.spans[0]
    text = None if first.places is None else first.places[:, -count:, None, None]
    new = NewTokens(like, cache, state.dense, far=_far(settings, text))
    if first.valid is not None:
        arguments: dict[str, Any] = context.arguments  # type: ignore[assignment]
        arguments["attention_mask"] = first.valid[:, : first.length].long()
    layers: list[dict[str, Any]] = []
    stops = [span.first for span in state.spans[1:]] + [len(adapter.layers)]
    for span, stop in zip(state.spans, stops, strict=True):
        if span.first == 0 and span.plain and not state.pressed and not settings.is_mixed:
            layers += [{}] * stop
            continue
        layers += layer_arguments(adapter, span, stop, new)
    context.layer_arguments = layers


@torch.compiler.disable
def enter_language_model(context: ForwardContext, kwargs: dict[str, Any]) -> None:
    """A prompt is about to enter the language model; visual inputs of it are reduced. So is text on
    a cache that its caller has placed."""
    zero3 = context.zero3
    if zero3 is not None:
        kwargs["inputs_embeds"] = zero3.tie(kwargs["inputs_embeds"])
    # Some cores make four-dimensional masks of the one that they are given.
    kwargs = kwargs | {"attention_mask": context.mask}
    if context.ids is not None:
        begin_prefill(context, kwargs)
    prefill, embeds = context.prefill, kwargs["inputs_embeds"]
    if prefill is None and context.state is not None:
        continue_on_cache(context, kwargs, embeds.shape[1], embeds.device)
    if zero3 is not None:
        own = frozenset() if prefill is None else scoring_layers(context.settings, prefill)
        zero3.agree(own, embeds.device)


@torch.compiler.disable
def enter_layer(
    context: ForwardContext, layer: int, hidden_states: Tensor, kwargs: dict[str, Any]
) -> Tensor:
    """Hidden states (B, W, D) that enter a decoder layer in a prefill; `kwargs` are the layer's."""
    prefill, zero3 = context.prefill, context.zero3
    if prefill is None:
        if zero3 is not None:
            zero3.score_alike(layer, hidden_states, kwargs)
        return hidden_states
    if context.layer_arguments is not None:
        kwargs.update(arguments_of(context, layer, hidden_states))
    if prefill.last_only(hidden_states):
        return hidden_states
    kind, rotary = context.settings.adapter.layer_kinds[layer], kwargs["position_embeddings"]
    kwargs["position_embeddings"] = prefill.rotary_of(kind, rotary)
    hidden_states = add_deepstack(prefill, layer, hidden_states)
    if zero3 is not None and layer:
        zero3.score_alike(layer, hidden_states, kwargs)
    if layer in prefill.schedules:
        with context.clock.time("reduce"):
            hidden_states = reduce_at_layer(context, layer, hidden_states, kwargs)
        kwargs["position_embeddings"] = prefill.rotary_of(kind, rotary)
    if layer + 1 in prefill.schedules and context.settings.reads_previous_layer:
        prefill.entered = (hidden_states, kwargs["position_embeddings"])
    _new_arguments(context, layer, hidden_states, kwargs)
    return hidden_states


def along_tokens(
    context: ForwardContext, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...]:
    """What a decoder layer is given beside hidden states, for the tokens that are left: `args` are
    returned, keyword arguments replaced."""
    prefill = context.prefill
    if prefill is None:
        return args
    for name in context.settings.adapter.along:
        if name in kwargs:
            kwargs[name] = prefill.along(kwargs[name])
    return tuple(map(prefill.along, args))


def arguments_of(context: ForwardContext, layer: int, hidden_states: Tensor) -> dict[str, Any]:
    """What replaces keyword arguments of a decoder layer, for the last of the tokens that they were
    made for where the model cut its hidden states (B, W, D) to that one."""
    arguments = context.layer_arguments[layer]  # type: ignore[index]
    mask, index = arguments.get("attention_mask"), arguments.get("position_ids")
    if index is None or hidden_states.shape[1] > 1:
        return arguments
    if mask is not None and mask.ndim == 4:
        mask = mask[:, :, -1:]
    return arguments | {"attention_mask": mask, "position_ids": index[:, -1:]}


def _new_arguments(
    context: ForwardContext, layer: int, hidden_states: Tensor, kwargs: dict[str, Any]
) -> None:
    """Where a span begins: what its layers are given in place of the model's own arguments."""
    prefill: Any = context.prefill
    span = next((one for one in prefill.spans if one.first == layer), None)
    state, adapter = context.state, context.settings.adapter
    if span is None or state is None:
        return
    pressed = prefill.cached is not None and prefill.cached.pressed
    mixed, distant = context.settings.is_mixed, context.settings.calibration.distance
    if layer == 0 and span.stock_mask_serves and not (pressed or mixed or distant):
        return
    depth = len(adapter.layers)
    cache, terms = cache_of(kwargs), None
    if distant:
        rotary = adapter.cos_sin(kwargs["position_embeddings"])
        terms = distance_terms(rotary, rotary, prefill.layout.visual.to(hidden_states.device))
    far = _far(context.settings, prefill.along(prefill.table.positions))
    new = NewTokens(hidden_states, cache, state.dense, prefill.blocks, terms, far)
    stop = min((one.first for one in prefill.spans if one.first > layer), default=depth)
    own = layer_arguments(adapter, span, stop, new)
    layers = context.layer_arguments or [{}] * depth
    context.layer_arguments = layers[:layer] + own + layers[stop:]
    kwargs.update(context.layer_arguments[layer])


def _far(settings: Settings, positions: Tensor | None) -> Far | None:
    """What LM-Infinite lets the newest tokens see. positions: (B, q, K, 3 or 1) float64."""
    if settings.infinite is None or positions is None:
        return None
    adapter, slots = settings.adapter, settings.slots
    channels = ChannelTable.of(adapter.rotary)
    if positions.shape[2] > 1 and slots is not None:
        channels = channels.with_slots(slots.slots, slots.layout)
    trained = int(adapter.language_model.config.max_position_embeddings)
    positions = positions.expand(*positions.shape[:3], 3)
    return Far(settings.infinite, trained, positions, adapter.rotary, channels)


@torch.compiler.disable
def restore_length(context: ForwardContext, hidden_states: Tensor) -> Tensor:
    """Hidden states (B, W, D) that enter the final norm, at the length (B, S, D) that the model
    was given: a token that left has those of the last token before it that is left."""
    prefill: Any = context.prefill
    if prefill.last_only(hidden_states):
        return hidden_states
    hidden_states = add_deepstack(prefill, len(context.settings.adapter.layers), hidden_states)
    return hidden_states if prefill.back is None else gather(hidden_states, prefill.back)


def finish(context: ForwardContext, output: Any) -> PrefillRecord | None:
    """The model is through: bind the state to the cache; what a prefill did, as a record."""
    cache = cache_of(output) if hasattr(output, "get") else None
    state, prefill = context.state, context.prefill
    if state is not None and cache is not None:
        if prefill is None:
            state.held = cache_length(cache) if not is_static(cache) else state.held
        else:
            state.bind(cache)
    if prefill is None:
        return None
    totals, settings = context.clock.totals, context.settings
    return PrefillRecord(
        method=repr(settings.method),
        reads_question=settings.reads("text_query")
        and settings.method.features_from != "pre_projector",
        grids=tuple(item.input.grid for item in prefill.inputs),
        first=prefill.first,
        later=tuple(prefill.later),
        features=prefill.features.detach(),
        positions=prefill.table.positions,
        dense_positions=prefill.dense_positions,
        places=tuple((item.row, item.columns, item.following) for item in prefill.inputs),
        rows=prefill.entry_layout.rows,
        columns=prefill.entry_layout.columns,
        text=prefill.text_tokens,
        cache_bytes=cache_bytes(cache),
        config=settings.adapter.language_model.config,
        reduce_ms=totals.get("reduce", 0.0),
        plan_ms=totals.get("plan", 0.0),
    )
