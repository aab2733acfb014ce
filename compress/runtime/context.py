"""What is known of one forward, and of the prompt that it reduces."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compress.report.clock import Clock
from compress.runtime.cache_state import CacheState, Span
from compress.runtime.encoded import Encoded
from compress.runtime.layout import BatchLayout
from compress.runtime.prompt import PlacedInput
from compress.runtime.settings import Settings
from compress.runtime.tensors import gather
from compress.runtime.zero3 import Zero3Symmetry
from compress.tokens import Reduction
from positions import PositionTable

_CURRENT: ContextVar[ForwardContext | None] = ContextVar("foveate_forward", default=None)


@dataclass(eq=False)
class PrefillState:
    """A prompt with visual inputs on its way through the decoder layers.

    inputs: the visual inputs, in order. layout: where the tokens are now. schedules: for each
    decoder layer at which a schedule has a pair, the tokens that each input keeps from it on.
    query, query_real: (B, Q) int64 and bool, columns of the query rows now. text, text_real:
    (samples, Qt), columns now of the text after each sample's first visual input; text_rows:
    (samples,) int64. priors, prior_of: as in `DensePrompt`, columns now. first: reductions before
    the language model; now: from the dense tokens to those that are left; later: the same for each
    layer that started with fewer tokens. deepstack: (T, D) added to the visual tokens, by the
    decoder layer before which it is. back: (B, S) int64, for each column that the model was given
    the one that stands for it now; None while all are there. cached: the state that the cache came
    with, None where it held nothing of ours; past: tokens that it held in its first layer. table:
    positions of the new tokens. dense_positions: (B, S, 3) float64, where the dense tokens would
    stand, None if tokens are renumbered. features: (T', D), the visual tokens as they entered.
    entered: hidden states and rotary of the layer before, where a method is scored by it. index:
    (B, W') int64, which of the W tokens that entered are left, None while all are. places: (B, W')
    float64, their positions, where some layers see the nearest positions alone. blocks: (B, W')
    int64, as `ModelAdapter.attention_blocks`.
    """

    inputs: list[PlacedInput]
    layout: BatchLayout
    schedules: dict[int, list[int]]
    query: Tensor
    query_real: Tensor
    text: Tensor
    text_real: Tensor
    text_rows: Tensor
    priors: Tensor
    prior_of: tuple[int, ...]
    first: tuple[Reduction, ...]
    back: Tensor | None
    text_tokens: int
    features: Tensor
    deepstack: dict[int, Tensor] = field(default_factory=dict)
    cached: CacheState | None = None
    past: int = 0
    spans: list[Span] = field(default_factory=list)
    now: tuple[Reduction, ...] = ()
    later: list[tuple[int, tuple[Reduction, ...]]] = field(default_factory=list)
    table: PositionTable = field(init=False)
    dense_positions: Tensor | None = None
    entry_layout: BatchLayout = field(init=False)
    entered: tuple[Tensor, Any] | None = None
    index: Tensor | None = None
    places: Tensor | None = None
    blocks: Tensor | None = None
    _rotary: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.now, self.entry_layout = self.first, self.layout

    @property
    def sizes(self) -> Tensor:
        """(T,) int64: dense tokens in each visual token."""
        return torch.cat([reduction.size[0] for reduction in self.now])

    def rotary_of(self, kind: str, rotary: Any) -> Any:
        """cos and sin of the tokens that are left. rotary: of all that entered, (B or 1, W, d), as
        the model hands them to a layer of `kind`: two tensors, or a complex one."""
        if self.index is None:
            return rotary
        if kind not in self._rotary:
            whole = isinstance(rotary, Tensor)
            parts = [gather(x, self.index) for x in ([rotary] if whole else rotary)]
            self._rotary[kind] = parts[0] if whole else tuple(parts)
        return self._rotary[kind]

    def last_only(self, hidden_states: Tensor) -> bool:
        """Whether the model has cut its hidden states to those of the last token, where its last
        layers have no keys of their own (Gemma 4). It is let to in rows that end in a token.

        Parts of a sequence that processes share are longer.
        """
        return hidden_states.shape[1] == 1 < self.layout.mask.shape[1]

    def along(self, x: Any) -> Any:
        """A tensor (B, W, ...) that runs along the tokens that entered, for those that are left;
        anything else as it is."""
        if self.index is None or not isinstance(x, Tensor) or x.shape[1] == 1:
            return x
        return gather(x, self.index)

    def follow(self, reductions: list[Reduction], index: Tensor, back: Tensor) -> None:
        """Take in reductions of the tokens that were left. index, back: see `BatchLayout.after`."""
        self.index = index if self.index is None else self.index.gather(1, index)
        self._rotary = {}
        if self.places is not None:
            self.places = self.places.gather(1, index)
        if self.blocks is not None:
            self.blocks = self.blocks.gather(1, index)
        self.query = back.gather(1, self.query)
        self.priors = back.gather(1, self.priors)
        self.text = back[self.text_rows[:, None], self.text]
        self.back = back if self.back is None else back.gather(1, self.back)
        self.now = tuple(
            old.then(new) if old.count else old
            for old, new in zip(self.now, reductions, strict=True)
        )


@dataclass(eq=False)
class ForwardContext:
    """One forward of a model under a compression: made at the model's door, gone at its end.

    labels, logits_to_keep: as the model was given them. ids: (B, S) of a call that brings visual
    inputs, else None; media: the core's keyword arguments; positions_given: whether the caller gave
    position ids; mask: the attention mask as the core was given it. encoded: visual inputs by kind.
    state: of the cache that the call came with. arguments: what replaces the language model's
    keyword arguments. layer_arguments: for each decoder layer what replaces its own; None where
    nothing does. table: positions of the new tokens, None where the stock ones hold. prefill: the
    prompt that is being reduced. zero3: keeps processes alike under ZeRO-3, None elsewhere. began:
    by the clock, where the call brings visual inputs. is_recorded: whether this was a prefill, and
    it is in the report.
    """

    settings: Settings
    clock: Clock
    opened_by: Any
    labels: Tensor | None = None
    logits_to_keep: int = 0
    ids: Tensor | None = None
    media: Mapping[str, Any] = field(default_factory=dict)
    positions_given: bool = False
    mask: Any = None
    encoded: dict[str, Encoded] = field(default_factory=dict)
    cache: Any = None
    state: CacheState | None = None
    arguments: dict[str, Any] | None = None
    layer_arguments: list[dict[str, Any]] | None = None
    table: PositionTable | None = None
    prefill: PrefillState | None = None
    zero3: Zero3Symmetry | None = None
    began: float | None = None
    is_recorded: bool = False
    _token: Token[ForwardContext | None] | None = None

    def open(self) -> None:
        """Make this the context of the thread's forward."""
        self._token = _CURRENT.set(self)

    def close(self) -> None:
        """The forward is over, or has raised."""
        if self._token is not None:
            _CURRENT.reset(self._token)
            self._token = None

    def reads_whole_sequence(self, layer: int) -> bool:
        """Whether the sequence that enters a decoder layer is read or shortened as a whole."""
        prefill = self.prefill
        if prefill is None:
            return False
        layers, masked = prefill.schedules, self.settings.calibration.distance
        masked = masked or not prefill.spans[0].plain
        return layer in layers or layer + 1 in layers or (layer == 0 and masked)


def current_context() -> ForwardContext | None:
    """The forward under way in this thread; None between forwards."""
    return _CURRENT.get()
