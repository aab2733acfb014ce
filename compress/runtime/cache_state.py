"""What forwards on a cache have to know of the prompt that a compression shortened."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from compress.errors import CompressionError

_ON_CACHE = "foveate_state"
# The caches that were filled under a compression, by the core of its model.
_FILLED: weakref.WeakKeyDictionary[Any, weakref.WeakSet[Any]] = weakref.WeakKeyDictionary()
ONLY_NEW = (
    "On a cache that was filled under a compression pass the new ids only, with an attention mask "
    "over all {} tokens of the dense sequence"
)


@dataclass
class Span:
    """Decoder layers from `first` up to the next span's first; their caches hold the same tokens.

    length: tokens that these layers were given, P of the prompt and those that came after.
    valid: (B, >= length) bool, False at padding, None where no row has any. bias: (B, >= length)
    float32, what is added to the attention logits of each key, None where that is 0 everywhere.
    samples: (B, length) int64, which of the samples packed in a row a token belongs to; None
    where a row is one sample. places: (B, length) float64, the position of each token, where some
    layers see the nearest positions alone. Tensors may be longer than `length`: room for tokens to
    come.
    """

    first: int
    length: int
    valid: Tensor | None = None
    bias: Tensor | None = None
    samples: Tensor | None = None
    places: Tensor | None = None
    _added: Tensor | None = field(default=None, repr=False)

    @property
    def plain(self) -> bool:
        """Whether the causal mask is all there is to know."""
        return self.valid is None and self.bias is None and self.samples is None

    @property
    def stock_mask_serves(self) -> bool:
        """Whether the stock model's mask holds, given which tokens are padding."""
        return self.bias is None and self.samples is None

    def real(self, rows: int, device: torch.device) -> Tensor:
        """(B, length) bool: False at padding."""
        if self.valid is None:
            return torch.ones(rows, self.length, dtype=torch.bool, device=device)
        return self.valid[:, : self.length]

    def key_bias(self) -> Tensor | None:
        """(B, length) float32; None where it is 0 everywhere."""
        return None if self.bias is None else self.bias[:, : self.length]

    def added(self, dtype: torch.dtype) -> Tensor:
        """(B, length): what is added to the logits of each key for a newest token, the least number
        at padding. Kept from one decoded token to the next; needs `bias`."""
        bias: Tensor = self.bias  # type: ignore[assignment]
        if self._added is None or self._added.dtype != dtype:
            added = bias.to(dtype)
            if self.valid is not None:
                valid = _with_room(self.valid, added.shape[1], True)[:, : added.shape[1]]
                added = added.masked_fill(~valid, torch.finfo(dtype).min)
            self._added = added
        return self._added[:, : self.length]

    def extend(self, count: int, new: Tensor | None, places: Tensor | None = None) -> None:
        """Take in `count` tokens. new: (B, count) bool, False at padding; None if all are real.
        places: (B, count) float64, their positions, read if the span has some."""
        start, self.length = self.length, self.length + count
        if self.places is not None and places is not None:
            self.places = torch.cat([self.places, places.to(self.places)], dim=1)
        if new is not None:
            # Nothing is written in place: a tensor may be of an inference mode that is over.
            valid = self.valid
            if valid is None:
                valid = torch.ones(len(new), start, dtype=torch.bool, device=new.device)
            self.valid = torch.cat([valid[:, :start], new.to(valid.device)], dim=1)
            if self._added is not None:
                added = self._added[:, :start]
                least = torch.finfo(added.dtype).min
                column = added.new_zeros(new.shape).masked_fill(~new.to(added.device), least)
                self._added = torch.cat([added, column], dim=1)
        elif self.valid is not None:
            self.valid = _with_room(self.valid, self.length, True)
        if self.bias is not None:
            self.bias = _with_room(self.bias, self.length, 0.0)
        if self._added is not None:
            self._added = _with_room(self._added, self.length, 0.0)

    def crop(self, count: int) -> None:
        """Forget the last `count` tokens."""
        self.length -= count
        self._added = None
        for name in ("valid", "bias", "places"):
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(self, name, tensor[:, : self.length].clone())


def _with_room(x: Tensor, length: int, value: bool | float) -> Tensor:
    """x (B, n) made longer where it does not hold `length` columns."""
    missing = length - x.shape[1]
    if missing <= 0:
        return x
    return functional.pad(x, (0, max(missing, x.shape[1], 64)), value=value)


@dataclass
class CacheState:
    """What was given to the layers of a cache; found from the cache object, copied with it.

    spans: by first layer. rows: B. dense: tokens that the sequence would have without reduction,
    padding included. real: (B,) int64, the same of each row without padding, at the last prefill;
    next_at: (B,) float64, where the next text token stood then. since: text tokens that came after
    it. given: the last position ids of a caller who places tokens, from which the next follow.
    trailing: columns at the end that are text in every row. held: tokens in the first layer's cache
    when the last forward was over. pressed: whether another tool has removed keys.
    """

    spans: list[Span]
    rows: int
    dense: int
    real: Tensor
    next_at: Tensor
    trailing: int
    since: int = 0
    given: Tensor | None = None
    held: int = 0
    pressed: bool = False
    core: Any = field(default=None, repr=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> CacheState:
        copied = CacheState(
            [
                Span(s.first, s.length, *map(_clone, (s.valid, s.bias, s.samples, s.places)))
                for s in self.spans
            ],
            self.rows,
            self.dense,
            self.real.clone(),
            self.next_at.clone(),
            self.trailing,
            self.since,
            _clone(self.given),
            self.held,
            self.pressed,
            self.core,
        )
        memo[id(self)] = copied
        return copied

    @staticmethod
    def of(cache: Any) -> CacheState | None:
        """The state of a cache that was filled under a compression; None of any other."""
        state: CacheState | None = getattr(cache, _ON_CACHE, None)
        if state is not None and not cache_length(cache):  # it was reset, to be filled anew
            delattr(cache, _ON_CACHE)
            state = None
        if isinstance(vars(cache).get("update"), _Refusal):
            del cache.update
        return state

    def bind(self, cache: Any) -> None:
        """Make this the state of `cache`, as it is after a prefill."""
        self.held = cache_length(cache)
        if not is_static(cache):
            lengths = {
                number: layer.get_seq_length()
                for number, layer in enumerate(cache.layers)
                if hasattr(layer, "get_seq_length")  # linear attention has no sequence
            }
            self.pressed = any(int(n) != self.span(i).length for i, n in lengths.items())
        setattr(cache, _ON_CACHE, self)
        _FILLED.setdefault(self.core, weakref.WeakSet()).add(cache)

    @property
    def length(self) -> int:
        """Tokens that the first layer was given."""
        return self.spans[0].length

    @property
    def plain(self) -> bool:
        """Whether no span has padding, a bias or packed samples."""
        return all(span.plain for span in self.spans)

    def span(self, layer: int) -> Span:
        """The span that decoder layer `layer` is in."""
        return next(span for span in reversed(self.spans) if span.first <= layer)

    @property
    def next_position(self) -> Tensor:
        """(B,) float64: where the next text token stands."""
        if self.given is not None:
            return positions_of(self.given, self.rows)[:, -1].amax(1) + 1
        return self.next_at + self.since

    @property
    def real_tokens(self) -> Tensor:
        """(B,) int64: tokens of each row without reduction and padding."""
        return self.real + self.since

    def check_rows(self, rows: int) -> None:
        """Raise CompressionError unless a forward has the rows that filled the cache."""
        if rows != self.rows:
            raise CompressionError(
                f"{rows} rows come with a cache that was filled with {self.rows} rows under a "
                "compression: expected the same rows, in the same order"
            )

    def follow(self, cache: Any) -> None:
        """Forget the tokens that were cropped off the cache, as assisted decoding does.

        Raises ValueError where the crop reached a visual input, or the cache has grown elsewhere.
        """
        if is_static(cache):
            return
        length = cache_length(cache)
        lost = self.held - length
        if lost == 0:
            return
        if lost < 0 or lost > self.trailing:
            raise ValueError(
                f"the cache holds {length} tokens in its first layer and held {self.held} after "
                "the last forward under this compression: it may be cropped back to the last "
                "visual input, no further, and filled by the model alone"
            )
        span = self.spans[0]
        stop = span.length
        gone = torch.full_like(self.real, lost)
        if span.valid is not None:
            gone = span.valid[:, stop - lost : stop].sum(1)
        self.next_at = self.next_position - gone
        self.real, self.since, self.given = self.real_tokens - gone, 0, None
        for one in self.spans:
            one.crop(lost)
        self.trailing -= lost
        self.dense -= lost
        self.held = length

    def extend(self, count: int, new: Tensor | None, places: Tensor | None) -> None:
        """Take in `count` text tokens. new: (B, count) bool, False at padding; None if all are
        real. places: (B, count) float64, their positions, read if spans have some."""
        for span in self.spans:
            span.extend(count, new, places)
        self.dense += count
        self.trailing += count
        if new is None:
            self.since += count
            return
        added = new.sum(1)
        self.next_at, self.real = self.next_at + added, self.real + added

    def begin_turn(self) -> None:
        """Fold what came since the last prefill into `next_at` and `real`."""
        self.next_at, self.real = self.next_position, self.real_tokens
        self.since, self.given = 0, None


class _Refusal:
    """Stands in for `cache.update` of a cache that a removed compression has shortened."""

    def __init__(self, cache: Any) -> None:
        self._cache = weakref.ref(cache)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        cache = self._cache()
        if cache is not None and not cache_length(cache):  # it was reset
            del cache.update
            return cache.update(*args, **kwargs)
        raise CompressionError(
            "this cache was filled under a compression that was removed: the model would take its "
            "tokens for those of the dense sequence. compress() the model again to go on, or start "
            "with a new cache"
        )


def refuse_caches(core: Any) -> None:
    """Let the caches that were filled under a compression of `core` take no more tokens, until the
    model is compressed again."""
    for cache in _FILLED.pop(core, ()):
        if cache_length(cache):
            cache.update = _Refusal(cache)


def _clone(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.clone()


def is_static(cache: Any) -> bool:
    """Whether a cache has room for all tokens from the start."""
    return bool(getattr(cache, "is_compileable", False))


def cache_length(cache: Any) -> int:
    """Tokens in the first layer of a cache that holds a sequence."""
    return int(cache.get_seq_length())


def positions_of(given: Tensor, rows: int) -> Tensor:
    """(B, S, 3) float64 on t, h and w, from position ids of any of the forms that models take:
    (B or 1, S); (3, B, S); (4, B, S) with text positions in front; (1, B, S)."""
    if given.ndim == 3:
        axes = given[-3:].expand(3, rows, -1)
        return axes.permute(1, 2, 0).double()
    return given.double().expand(rows, -1)[..., None].expand(-1, -1, 3)


def new_tokens_mask(mask: Any, rows: int, count: int, dense: int) -> Tensor | None:
    """(B, count) bool: which of the new tokens are real, from whatever mask the model was given;
    None where all are.

    Raises ValueError where a two-dimensional mask does not span `dense` old and `count` new tokens.
    """
    if isinstance(mask, dict):  # by kind of attention
        mask = mask.get("full_attention")
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        raise ValueError(
            f"attention_mask is {type(mask).__name__}: expected a tensor of two dimensions"
        )
    if mask.ndim == 4:  # made by generate for a static cache
        if dense and count > 1 and rows > 1:
            raise ValueError(
                "a second turn of several rows on a static cache: its padding cannot be told from "
                "the mask that the model is given; use a dynamic cache, or one row"
            )
        if dense:
            return None
        last = mask[:, 0, -1, :count]  # the last query sees every real token
        return last if last.dtype == torch.bool else last == 0
    if mask.shape[1] != dense + count:
        raise ValueError(
            f"attention_mask spans {mask.shape[1]} tokens, but {dense} came before (counted dense) "
            f"and {count} are new. {ONLY_NEW.format(dense + count)}"
        )
    return mask[:, dense:].bool()


def turn_positions(
    state: CacheState, given: Tensor, new: Tensor | None, deltas: Tensor | None
) -> Tensor:
    """(B, q, 3) float64: where the caller of the model has placed new tokens.

    given: position ids as the language model gets them. new: (B, q) bool, real tokens, None if all
    are. deltas: (B', 1), what a model under M-RoPE adds to text positions in later turns. It is
    that of the last prompt that the model has seen, which need not be this one: this one's is used.

    Raises CompressionError for full ids on a reduced cache: `generate` cuts as many of them off as
    the cache holds, which are fewer than they were.
    """
    begins = state.next_position
    if deltas is not None and given.ndim == 3 and len(given) == 1:
        each = deltas.repeat_interleave(max(1, given.shape[1] // len(deltas)), 0)
        # A delta of more rows than this prompt has spread its text over them.
        text = (given[0] - each.to(given.device))[: state.rows]
        given = text + (begins - state.real_tokens)[:, None]
    positions = positions_of(given, state.rows)
    if positions.shape[1] > 1:
        first = positions[:, :, 0]
        if new is not None:
            first = first.masked_fill(~new, torch.inf)
        first = first.amin(1)
        if bool((first < begins).any()):
            raise CompressionError(
                f"the new tokens would stand at {first.tolist()}, before the end of what is cached "
                f"({begins.tolist()}). {ONLY_NEW.format(state.dense + positions.shape[1])}"
            )
    return positions


def packed_samples(text_positions: Sequence[Sequence[int]]) -> Tensor | None:
    """(B, S) int64 on the host: which of the samples packed in a row each token belongs to, from
    text positions that begin anew; None if a row is one sample."""
    begins = torch.as_tensor(text_positions).diff(dim=1) != 1
    if not bool(begins.any()):
        return None
    return functional.pad(begins.long().cumsum(1), (1, 0))
