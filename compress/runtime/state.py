"""What the forwards after a reduced prompt have to know, and the masks that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask

from positions import PositionTable
from vlm.families import ModelAdapter

_ON_CACHE = "foveate_state"
ONLY_NEW = (
    "On a cache that was filled under a compression pass the new ids only, with an attention mask "
    "over all {} tokens of the dense sequence"
)


@dataclass
class State:
    """Bound to the cache object, so that it goes where the cache goes.

    valid: for each stage, by its first decoder layer, (B, L) bool, False at padding, of the tokens
        that its layers cached in prefill. tail: (B, t) bool, the same of tokens that came after.
    bias: like `valid`, float32, what is added to the attention logits of each key; empty if none.
    samples: like `valid`, int64, which of the samples packed in a row a token is of; empty if none.
    dense: how many tokens the sequence would have without reduction, padding included; real: (B,)
        int64, the same of each row without padding.
    following: (B,) float64, where the next text token stands.
    loose: columns at the end of the prompt that are text in every row.
    held: tokens in the first layer's cache when the last forward was over. pressed: whether another
    tool has removed keys from the cache.
    """

    valid: dict[int, Tensor]
    tail: Tensor
    dense: int
    real: Tensor
    following: Tensor
    loose: int = 0
    held: int = 0
    pressed: bool = False
    bias: dict[int, Tensor] = field(default_factory=dict)
    samples: dict[int, Tensor] = field(default_factory=dict)

    @staticmethod
    def of(cache: Any) -> State | None:
        """The state of a cache that was filled under a compression; None of any other."""
        found: State | None = getattr(cache, _ON_CACHE, None)
        if found is not None and not length_of(cache):  # the cache was reset, to be filled anew
            delattr(cache, _ON_CACHE)
            return None
        return found

    def bind(self, cache: Any) -> None:
        """Remember this as the state of `cache`, as it is now."""
        self.held = length_of(cache)
        if not getattr(cache, "is_compileable", False):
            self.pressed = any(
                int(cache.get_seq_length(layer)) != self.given(layer)
                for layer in range(len(cache.layers))
            )
        setattr(cache, _ON_CACHE, self)

    @property
    def length(self) -> int:
        """Tokens that the first layer was given."""
        return self.given(0)

    def given(self, layer: int) -> int:
        """Tokens that decoder layer `layer` was given."""
        return self.valid[self.stage(layer)].shape[1] + self.tail.shape[1]

    def stage(self, layer: int) -> int:
        """The first decoder layer of the stage that `layer` is in."""
        return max(first for first in self.valid if first <= layer)

    def seen(self, layer: int) -> Tensor:
        """(B, tokens given) bool: which of them are real, in decoder layer `layer`."""
        return torch.cat([self.valid[self.stage(layer)], self.tail], dim=1)

    def weights(self, layer: int) -> Tensor | None:
        """(B, tokens given) float32: what is added to attention logits in `layer`; None if 0."""
        if not self.bias:
            return None
        bias = self.bias[self.stage(layer)]
        return torch.cat([bias, bias.new_zeros(self.tail.shape)], dim=1)

    def follow(self, cache: Any) -> None:
        """Forget the tokens that were cropped off the cache, as assisted decoding does.

        Raises ValueError where the crop reached a visual input, or the cache has grown elsewhere.
        """
        lost = self.held - length_of(cache)
        if lost < 0 or lost > self.tail.shape[1] + self.loose:
            raise ValueError(
                f"the cache holds {length_of(cache)} tokens in its first layer and held "
                f"{self.held} after the last forward under this compression: it may be cropped "
                "back to the last visual input, no further, and filled by the model alone"
            )
        if not lost:
            return
        gone = self.seen(0)[:, -lost:].sum(1)
        own = max(0, lost - self.tail.shape[1])
        self.tail = self.tail[:, : max(0, self.tail.shape[1] - lost)]
        for parts in (self.valid, self.bias):
            parts.update({layer: x[:, : x.shape[1] - own] for layer, x in parts.items()})
        self.loose -= own
        self.following = self.following - gone.to(self.following)
        self.real = self.real - gone
        self.dense -= lost

    def extend(self, new: Tensor, given: Tensor | None) -> PositionTable:
        """Take in text tokens; returns the table of their positions.

        new: (B, q) bool, False at padding. given: (B, q, 3) float64, where the model's caller has
            placed them; None to go on from the last.
        """
        start, q = self.length, new.shape[1]
        if given is None:
            places = self.following[:, None] + new.cumsum(1) - 1
            self.following = self.following + new.sum(1)
            given = places[..., None].expand(-1, -1, 3)
        else:
            self.following = given.masked_fill(~new[..., None], 0).amax((1, 2)) + 1
        self.tail = torch.cat([self.tail, new], dim=1)
        self.real = self.real + new.sum(1)
        self.dense += q
        return table_of(given[:, :, None], start, self.following)


def length_of(cache: Any) -> int:
    """Tokens in the first layer of a cache."""
    return int(cache.get_seq_length())


def table_of(
    positions: Tensor, start: int, following: Tensor, exact: Tensor | None = None, **options: Any
) -> PositionTable:
    """A table for tokens at physical indices `start`, start + 1, ...: (B, q, K, 3) float64.

    Keys that are cached are rotated already, so nothing before `start` is looked up.
    """
    rows, _, slots, _ = positions.shape
    before = positions.new_zeros(rows, start, slots, 3)
    if exact is None:
        exact = torch.zeros(rows, dtype=torch.bool, device=positions.device)
    return PositionTable(torch.cat([before, positions], dim=1), following, exact, **options)


def positions_of(given: Tensor | None, embeds: Tensor) -> Tensor | None:
    """(B, S, 3) float64 on t, h and w, from ids of any of the forms that models take."""
    if given is None:
        return None
    if given.ndim == 3:  # (3, B, S), (4, B, S) with text positions in front, or (1, B, S)
        axes = given[-3:].expand(3, len(embeds), -1)
        return axes.permute(1, 2, 0).double()
    return given.double().expand(len(embeds), -1)[..., None].expand(-1, -1, 3)


def chunk_mask(mask: Any, rows: int, q: int, dense: int, device: Any) -> Tensor:
    """(B, q) bool: which of the new tokens are real, from whatever mask the model was given.

    Raises ValueError where a two-dimensional mask does not span `dense` old and `q` new tokens.
    """
    if isinstance(mask, dict):  # by kind of attention
        mask = mask.get("full_attention")
    if mask is None:
        return torch.ones(rows, q, dtype=torch.bool, device=device)
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        raise ValueError(
            f"attention_mask is {type(mask).__name__}: expected a tensor of two dimensions"
        )
    if mask.ndim == 4:  # made by generate for a static cache
        if dense and q > 1 and rows > 1:
            raise ValueError(
                "a second turn of several rows on a static cache: its padding cannot be told from "
                "the mask that the model is given; use a dynamic cache, or one row"
            )
        if dense:
            return torch.ones(rows, q, dtype=torch.bool, device=device)
        last = mask[:, 0, -1, :q]  # the last query sees every real token
        return last if last.dtype == torch.bool else last == 0
    if mask.shape[1] != dense + q:
        raise ValueError(
            f"attention_mask spans {mask.shape[1]} tokens, but {dense} came before (counted dense) "
            f"and {q} are new. {ONLY_NEW.format(dense + q)}"
        )
    return mask[:, dense:].bool().to(device)


def samples_of(kwargs: dict[str, Any]) -> Tensor | None:
    """(B, S) int64: which of the samples packed in a row each token is of; None if rows hold one.

    As the stock model reads it: no mask, no cache, and text positions that begin anew.
    """
    given = kwargs.get("position_ids")
    cache = kwargs.get("past_key_values") is not None or kwargs.get("use_cache")
    if given is None or cache or kwargs.get("attention_mask") is not None:
        return None
    if given.ndim == 3:
        if len(given) != 4:  # without text positions in front, models pack nothing
            return None
        given = given[0]
    begins = given.diff(dim=1) != 1
    if not bool(begins.any()):
        return None
    samples = torch.nn.functional.pad(begins.long().cumsum(1), (1, 0))
    return samples.expand(len(kwargs["inputs_embeds"]), -1).contiguous()


def turn_positions(
    state: State, given: Tensor | None, embeds: Tensor, new: Tensor, deltas: Tensor | None
) -> Tensor | None:
    """(B, q, 3) float64: where the caller of the model has placed new tokens; None if nowhere.

    given: position ids as the language model gets them. new: (B, q) bool, real tokens. deltas:
    (B', 1), what a model under M-RoPE adds to text positions in later turns. It is that of the
    last prompt that the model has seen, which need not be this one, so this one's is taken.

    Raises ValueError for full ids on a reduced cache: `generate` cuts as many of them off as the
    cache holds, which are fewer than they were.
    """
    if given is None:
        return None
    begins = state.following
    if deltas is not None and given.ndim == 3 and len(given) == 1:
        each = deltas.repeat_interleave(max(1, given.shape[1] // len(deltas)), 0)
        # A delta of more rows than this prompt has spread its text over them.
        text = (given[0] - each.to(given.device))[: len(embeds)]
        given = text + (begins - state.real)[:, None]
    places: Tensor = positions_of(given, embeds)  # type: ignore[assignment]
    if new.shape[1] > 1:
        first = places[:, :, 0].masked_fill(~new, torch.inf).amin(1)
        if bool((first < begins).any()):
            raise ValueError(
                f"the new tokens would stand at {first.tolist()}, before the end of what is cached "
                f"({begins.tolist()}). {ONLY_NEW.format(state.dense + new.shape[1])}"
            )
    return places


def causal_mask(
    adapter: ModelAdapter, state: State, layer: int, hidden: Tensor, cache: Any
) -> tuple[Any, Tensor]:
    """What the attention of `layer` takes as mask, and (1, q) int64 indices of the new tokens; of
    packed samples (B, q), from 0 in each.

    Raises ValueError where another hand has shortened a padded cache (kvpress on a batch).
    """
    q = hidden.shape[1]
    mask, bias = state.seen(layer), state.weights(layer)
    index = torch.arange(mask.shape[1] - q, mask.shape[1], device=mask.device)[None]
    if cache is not None and not getattr(cache, "is_compileable", False):
        held = int(cache.get_seq_length(layer))
        if held + q != mask.shape[1]:
            if not bool(mask.all()) or bias is not None:
                raise ValueError(
                    f"the cache of decoder layer {layer} holds {held} tokens where "
                    f"{mask.shape[1] - q} were cached: keys that another tool removes can be "
                    "followed in a batch without padding, and without a bias by size"
                )
            mask = mask[:, :1].expand(-1, held + q)
    config = adapter.language_model.config
    samples = state.samples[state.stage(layer)] if state.samples else None
    if samples is not None:
        index = index - torch.searchsorted(samples, samples)
    if bias is not None and not bool(bias.any()):
        bias = None
    grows = samples is None and not getattr(cache, "is_compileable", False)
    if bias is None and q == 1 and grows and config._attn_implementation == "sdpa":
        # What transformers would make of it, in one step: stages decode as often as tokens do.
        return (None if bool(mask.all()) else mask[:, None, None].to(hidden.device)), index
    if bias is None:
        causal = create_causal_mask(
            config=config,
            inputs_embeds=hidden,
            attention_mask=mask.long() if samples is None else None,
            past_key_values=cache,
            position_ids=None if samples is None else index,
            layer_idx=layer,
        )
        return causal, index
    return _weighted(mask, bias, q, hidden, cache, layer, samples), index


def _weighted(
    mask: Tensor,
    bias: Tensor,
    q: int,
    hidden: Tensor,
    cache: Any,
    layer: int,
    samples: Tensor | None,
) -> Tensor:
    """(B, 1, q, keys): the causal mask as numbers to be added, with the bias in it."""
    length = mask.shape[1]
    place = torch.arange(length, device=mask.device)
    allowed = mask[:, None] & (place <= place[length - q :, None])
    if samples is not None:
        allowed = allowed & (samples[:, :, None] == samples[:, None])
    least = torch.finfo(hidden.dtype).min
    logits = bias[:, None].to(hidden.dtype).expand(-1, q, -1)
    whole = logits.masked_fill(~allowed, least)
    keys = length if cache is None else cache.get_mask_sizes(q, layer)[0]
    if keys > length:
        whole = torch.nn.functional.pad(whole, (0, keys - length), value=least)
    return whole[:, None].to(hidden.device)
