"""What a compression was asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral

import torch

from compress.budget import Allocation, resolve_budget
from compress.errors import CompressionError
from compress.methods import Method
from compress.probing.verdict import Probe
from compress.runtime.stages import LOCAL, RECURRENT, allocate, check_stages, stage_layers
from positions import PPE, ChannelTable, Scheme
from vlm.families import ModelAdapter

# Attention implementations whose masks can hold numbers to be added to the logits.
ADDITIVE = ("sdpa", "eager")


@dataclass(frozen=True)
class Settings:
    """One compression of one model; shared by all its forwards and never changed.

    adapter: where the parts of the model are. method, budget, positions, generator: as in
    `compress.compress`. slots: PPE slots of a merged token, None for one position each. probe: what
    sets the in-LLM schedule, None for the method's own.
    """

    adapter: ModelAdapter
    method: Method
    budget: int | float
    positions: str | Scheme = "original"
    slots: PPE | None = None
    generator: torch.Generator | None = None
    probe: Probe | None = None
    _allocations: dict[int, Allocation] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Raise ValueError, TypeError or CompressionError for what cannot be served."""
        self._check_budget()
        self._check_positions()
        self._check_model()
        self._check_probe()

    def with_budget(self, budget: int | float) -> Settings:
        """The same with another budget."""
        return replace(self, budget=budget)

    def allocation(self, dense: int) -> Allocation:
        """The counts that the budget gives a visual input of `dense` tokens; an input with fewer
        tokens than a budget that is a count keeps all."""
        if dense not in self._allocations:
            budget = self.budget
            if isinstance(budget, Integral):
                budget = min(int(budget), dense)
            self._allocations[dense] = self._allocate(dense, budget)
        return self._allocations[dense]

    def _allocate(self, dense: int, budget: int | float) -> Allocation:
        stages = stage_layers(self.adapter, self.method, self.scores_in_llm)
        size = (dense, len(self.adapter.layers))
        return allocate(self.method, size, budget, stages, self.probe)

    def reads(self, field_name: str) -> bool:
        """Whether the method needs or wants a field of VisualTokens."""
        return field_name in self.method.needs | self.method.wants

    @property
    def scores_in_llm(self) -> bool:
        """Whether the method reads attention scores or keys of decoder layers."""
        return bool(self.method.in_llm_needs & {"scores", "keys", "text_keys"})

    @cached_property
    def one_axis(self) -> bool:
        """Whether the model's rotary embedding reads one position per token, and not t, h and w."""
        return ChannelTable.of(self.adapter.rotary).axes == 1

    @cached_property
    def is_local(self) -> bool:
        """Whether some decoder layers see only the nearest positions."""
        return any(kind in LOCAL for kind in self.adapter.layer_kinds)

    @cached_property
    def is_mixed(self) -> bool:
        """Whether layers differ in kind, or see more than what came before: the stock model's own
        mask, made of padding alone, does not serve then."""
        return set(self.adapter.layer_kinds) != {"full_attention"} or self.adapter.has_blocks

    @cached_property
    def is_recurrent(self) -> bool:
        """Whether some decoder layers carry a state from token to token."""
        return any(kind in RECURRENT for kind in self.adapter.layer_kinds)

    @property
    def ordered(self) -> bool:
        """Whether tokens enter the language model in the order of their anchors: those of an input
        have no order for attention, but they do for a state that is carried from token to token."""
        return self.method.ordered or self.is_recurrent

    @property
    def proportional_attention(self) -> bool:
        """Whether log(size) is added to attention logits: the method wants it, and the attention
        implementation takes a bias."""
        wanted = self.method.proportional_attention is not False
        return wanted and self.attention_implementation in ADDITIVE

    @property
    def attention_implementation(self) -> str:
        """The language model's attention implementation, such as "sdpa"."""
        return str(self.adapter.language_model.config._attn_implementation)

    # ------------------------------------------------------------ checks

    def _check_budget(self) -> None:
        budget, most = self.budget, self.adapter.image_tokens
        if most is None:
            is_count = isinstance(budget, Integral) and not isinstance(budget, bool)
            if is_count and budget < 1:
                raise ValueError(
                    f"budget is {budget} tokens; expected at least 1, or a float in (0, 1] for a "
                    "share of the dense count"
                )
            most = int(budget) if is_count else 1
        resolve_budget(budget, most)

    def _check_positions(self) -> None:
        positions = self.positions
        named = positions in ("original", "compact") if isinstance(positions, str) else None
        if named is False or not (named or hasattr(positions, "place")):
            raise ValueError(
                f"positions is {positions!r}: expected 'original', 'compact' or a Scheme"
            )
        if self.slots is None:
            return
        if positions == "compact":
            raise ValueError(
                "slots give a merged token the positions of its members, and positions='compact' "
                "drops those: expected one or the other"
            )
        table = ChannelTable.of(self.adapter.rotary)
        table.with_slots(self.slots.slots, self.slots.layout)

    def _check_model(self) -> None:
        method, language_model = self.method, self.adapter.language_model
        if method.resizes_input and not self.adapter.resizes:
            raise CompressionError(
                f"{method!r} needs a vision encoder that takes smaller pictures, and family "
                f"{self.adapter.name!r} has none: give its processor a smaller picture instead"
            )
        kinds = set(self.adapter.layer_kinds)
        unknown = kinds - {"full_attention", *LOCAL, *RECURRENT}
        if unknown:
            raise CompressionError(
                f"{type(language_model).__name__} has decoder layers of kind "
                f"{', '.join(map(repr, sorted(unknown)))}, whose masks are not known: expected "
                f"{', '.join(map(repr, ('full_attention', *LOCAL, *RECURRENT)))}"
            )
        if self.is_local and not self.one_axis:
            raise CompressionError(
                f"{type(language_model).__name__} has local attention, which is measured in "
                "positions, and places tokens on three axes: expected one or the other"
            )
        check_stages(self.adapter, method, self.scores_in_llm)
        if method.proportional_attention and not self.proportional_attention:
            raise CompressionError(
                f"{method!r} adds log(size) to attention logits, which attention implementation "
                f"{self.attention_implementation!r} does not take: expected one of "
                f"{', '.join(ADDITIVE)}, or the method without proportional attention"
            )

    def _check_probe(self) -> None:
        depth = len(self.adapter.layers)
        if self.probe is not None and self.probe.depth != depth:
            raise CompressionError(
                f"schedule: the probe is of a model with {self.probe.depth} decoder layers, and "
                f"this one has {depth}"
            )
