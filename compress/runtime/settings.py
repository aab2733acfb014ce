"""What a compression was asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral, Real
from typing import Any

import torch

from compress.adaptive import Adaptive, Budget, Coverage
from compress.budget import Allocation, resolve_budget
from compress.calibration import Calibration
from compress.errors import CompressionError
from compress.methods import Method
from compress.probing.verdict import Probe
from compress.runtime.folded import fits, folds
from compress.runtime.stages import (
    LOCAL,
    RECURRENT,
    allocate,
    changed_plans,
    check_stages,
    stage_layers,
)
from positions import PPE, ChannelTable, LMInfinite, Scheme
from vlm.families import ModelAdapter

# Attention implementations whose masks can hold numbers to be added to the logits.
ADDITIVE = ("sdpa", "eager")
# Positions under which text stands where it would have stood.
ORIGINAL = ("original", "median")


@dataclass(frozen=True)
class Settings:
    """One compression of one model; shared by all its forwards and never changed.

    adapter: where the parts of the model are. method, budget, positions, generator: as in
    `compress.compress`. slots: PPE slots of a merged token, None for one position each. probe: what
    sets the in-LLM schedule, None for the method's own. calibrate: None for the method's own.
    keep_phase: see `compress.runtime.phases`.
    """

    adapter: ModelAdapter
    method: Method
    budget: Budget
    positions: str | Scheme | LMInfinite = "original"
    slots: PPE | None = None
    generator: torch.Generator | None = None
    probe: Probe | None = None
    calibrate: Calibration | None = None
    keep_phase: float = 0.0
    _allocations: dict[tuple[int, int | float], Allocation] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Raise ValueError, TypeError or CompressionError for what cannot be served."""
        self._check_budget()
        self._check_positions()
        self._check_model()
        self._check_calibration()
        self._check_infinite()
        self._check_probe()
        self._check_phase()

    def with_budget(self, budget: Budget) -> Settings:
        """The same with another budget."""
        return replace(self, budget=budget)

    def allocation(self, dense: int, budget: int | float | None = None) -> Allocation:
        """The counts that a budget gives a visual input of `dense` tokens; an input with fewer
        tokens than a budget that is a count keeps all.

        budget: by default the settings' own, unless that looks at the inputs (`compress.adaptive`).
        """
        budget = self.budget if budget is None else budget  # type: ignore[assignment]
        if isinstance(budget, Integral):
            budget = min(int(budget), dense)
        key: Any = (dense, budget)
        if key not in self._allocations:
            size = (dense, len(self.adapter.layers))
            own = allocate(self.method, size, key[1], self._stages, self.probe)
            self._allocations[key] = own
        return self._allocations[key]

    def entering(self, dense: int, keep: int, pairs: int | None = None) -> Allocation:
        """The counts if `keep` of `dense` tokens enter the language model. pairs: the most pairs of
        the schedule that are followed; default all, but none if all tokens enter."""
        size = (dense, len(self.adapter.layers))
        if keep == dense and pairs is None:
            return Allocation(*size, dense)
        plan = next(changed_plans(self.method, size, self._stages, self.probe))
        allocation = plan(keep)
        return replace(allocation, schedule=allocation.schedule[:pairs])

    @cached_property
    def _stages(self) -> tuple[int, ...] | None:
        return stage_layers(self.adapter, self.method, self.scores_in_llm)

    def reads(self, field_name: str) -> bool:
        """Whether the method needs or wants a field of VisualTokens."""
        return field_name in self.method.needs | self.method.wants

    @property
    def scores_in_llm(self) -> bool:
        """Whether the method reads attention scores or keys of decoder layers."""
        method = self.method
        return method.reads_scores or bool(method.in_llm_needs & {"keys", "text_keys"})

    @property
    def reads_previous_layer(self) -> bool:
        """Whether tokens are ranked before layer l by what entered layer l - 1."""
        by_change = self.method.score == "change"
        return by_change or (self.method.scored_by == "previous" and self.scores_in_llm)

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
        """Whether layers differ in kind, or see more than what came before, or less: the stock
        model's own mask, made of padding alone, does not serve then."""
        kinds = set(self.adapter.layer_kinds)
        return kinds != {"full_attention"} or self.adapter.has_blocks or self.infinite is not None

    @property
    def infinite(self) -> LMInfinite | None:
        """LM-Infinite's rule, if that was asked for."""
        return self.positions if isinstance(self.positions, LMInfinite) else None

    @property
    def tracks_places(self) -> bool:
        """Whether masks depend on where cached tokens stand."""
        return self.is_local or self.infinite is not None

    @cached_property
    def is_recurrent(self) -> bool:
        """Whether some decoder layers carry a state from token to token."""
        return any(kind in RECURRENT for kind in self.adapter.layer_kinds)

    @property
    def ordered(self) -> bool:
        """Whether tokens enter the language model in the order of their anchors: those of an input
        have no order for attention, but they do for a state that is carried from token to token."""
        return self.method.ordered or self.is_recurrent

    @cached_property
    def calibration(self) -> Calibration:
        """What is added to attention logits; what the method asks for by default."""
        if self.calibrate is not None:
            return self.calibrate
        wanted, additive = self.method.proportional_attention, self.is_additive
        return Calibration(bool(additive if wanted is None else wanted), first_layer=False)

    @property
    def is_additive(self) -> bool:
        """Whether the masks of the attention implementation hold numbers that are added."""
        return self.attention_implementation in ADDITIVE

    @property
    def is_folded(self) -> bool:
        """Whether terms of keys reach attention as channels (`compress.runtime.folded`)."""
        return self.calibration.by_key and not self.is_additive

    @property
    def keeps_original(self) -> bool:
        """Whether text stands where the stock model puts it."""
        return self.positions in ORIGINAL or self.infinite is not None

    @property
    def attention_implementation(self) -> str:
        """The language model's attention implementation, such as "sdpa"."""
        return str(self.adapter.language_model.config._attn_implementation)

    # ------------------------------------------------------------ checks

    def _check_budget(self) -> None:
        budget, most, method = self.budget, self.adapter.image_tokens, self.method
        if isinstance(budget, Adaptive):
            if method.in_llm_only or method.resizes_input or method.prunes_patches:
                raise CompressionError(
                    f"budget {budget} gives each visual input a count of its own before the "
                    f"language model, and {method!r} does not choose there: expected a method that "
                    "selects tokens there, such as 'foveate' or 'duet', or a number"
                )
            if isinstance(budget, Coverage):
                return
            budget = budget.budget
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
        named = positions in (*ORIGINAL, "compact") if isinstance(positions, str) else None
        planned = self.infinite is not None or hasattr(positions, "place")
        if named is False or not (named or planned):
            raise ValueError(
                f"positions is {positions!r}: expected 'original', 'median', 'compact', a Scheme "
                "or LMInfinite()"
            )
        if self.slots is None:
            return
        if positions in ("compact", "median"):
            raise ValueError(
                "slots give a merged token the positions of its members, and positions="
                f"{positions!r} gives it another: expected one or the other"
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
        if method.prunes_patches and not self.adapter.prunes_patches:
            raise CompressionError(
                f"{method!r} needs a vision encoder of packed patches, such as Qwen-VL's or "
                f"GLM-V's, and that of family {self.adapter.name!r} takes whole pictures"
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

    def _check_calibration(self) -> None:
        calibration, implementation = self.calibration, self.attention_implementation
        if not isinstance(calibration, Calibration):
            raise TypeError(f"calibrate is {calibration!r}: expected a Calibration or None")
        name = type(self.adapter.language_model).__name__
        additive = f"expected one of {', '.join(ADDITIVE)}"
        if calibration.distance and not self.is_additive:
            raise CompressionError(
                "the distance term depends on pairs of tokens, which attention implementation "
                f"{implementation!r} does not take: {additive}, or Calibration(distance=False)"
            )
        if calibration.distance and self.is_local:
            raise CompressionError(
                f"{name} has layers of local attention, where far keys are not seen: expected "
                "Calibration(distance=False)"
            )
        attentions = [
            layer.self_attn for layer in self.adapter.layers if hasattr(layer, "self_attn")
        ]
        capped = any(self.adapter.logit_cap(one) is not None for one in attentions)
        if self.is_folded and (capped or not folds(implementation)):
            raise CompressionError(
                f"attention implementation {implementation!r} takes no log(size) of merged tokens "
                f"in {name}: {additive} or FlashAttention, or a method and calibration without it"
            )
        sizes = {one.head_dim for one in attentions}
        if self.is_folded and not fits(max(sizes), self.adapter.language_model.dtype):
            raise CompressionError(
                f"{name} has heads of {max(sizes)} channels, and log(size) needs further ones, of "
                f"which {implementation!r} takes no more: {additive}"
            )

    def _check_infinite(self) -> None:
        if self.infinite is None:
            return
        name, asked = type(self.adapter.language_model).__name__, self.positions
        if set(self.adapter.layer_kinds) != {"full_attention"} or self.adapter.has_blocks:
            raise CompressionError(
                f"{asked} on {name}, whose layers have reaches of their own: expected a model with "
                "full causal attention in all layers"
            )
        if self.attention_implementation != "sdpa":
            raise CompressionError(
                f"{asked} with attention implementation {self.attention_implementation!r}: "
                "expected 'sdpa'"
            )
        scheduled = self.probe or self.method.own_schedule(len(self.adapter.layers))
        if self.scores_in_llm and scheduled:
            raise CompressionError(
                f"{self.method!r} ranks visual tokens by attention that has no cap on distances, "
                f"and {asked} has one: expected a method that reduces before the language model "
                "only, such as 'divprune'"
            )

    def _check_probe(self) -> None:
        depth = len(self.adapter.layers)
        if self.probe is not None and self.probe.depth != depth:
            raise CompressionError(
                f"schedule: the probe is of a model with {self.probe.depth} decoder layers, and "
                f"this one has {depth}"
            )

    def _check_phase(self) -> None:
        share, method = self.keep_phase, self.method
        if isinstance(share, bool) or not isinstance(share, Real):
            raise TypeError(f"keep_phase is {share!r}: expected a number in [0, 0.5)")
        if not 0 <= share < 0.5:
            raise ValueError(f"keep_phase is {share!r}: expected a number in [0, 0.5)")
        early = method.in_llm_only or method.resizes_input or method.prunes_patches
        if share and (early or method.repeats_anchors):
            raise CompressionError(
                f"keep_phase adds tokens to those that a method keeps before the language model, "
                f"and {method!r} does not choose there, or merges each into several: expected a "
                "method that selects tokens, such as 'duet'"
            )
        if share and not self.keeps_original:
            raise CompressionError(
                f"keep_phase keeps tokens for their positions, and positions={self.positions!r} "
                "gives them others: expected 'original'"
            )
