"""What a method is.

A method is a frozen dataclass whose fields are its whole configuration. It has up to three parts:

1. `allocate(dense, depth, budget)`: how many tokens are kept before the language model and at
   which decoder layers how many go on (`compress.budget.Allocation`).
2. `reduce(tokens, keep)`: before the language model, on `VisualTokens` of one shape. A subclass
   writes `pick`; `reduce` checks the input, handles keep-all and cuts long videos into windows.
3. `inside(tokens, count)`: before decoder layer l of each stage of the schedule, on `LayerTokens`.

What an attachment to a model hands over
----------------------------------------
For `reduce`: the fields of `VisualTokens` named by `method.needs` (an error if absent), and those
named by `method.wants` where it has them. `saliency` is the attention that a cell receives in
vision layer `method.scoring_layer` (None: the one whose output the projector gets), softmax in
float32, averaged over heads, from the class token if `method.saliency_rule` is "cls", averaged
over all queries if it is "received"; "auto" is "cls" where the tower has a class token.
`space` says where the features are taken: "pre_projector" before the projector, "projected" after it.

For `inside`, at each stage (l, count) of the schedule, visual tokens only, in their order:
- `scores` (B, n) float32, if "scores" is in `method.in_llm_needs`: softmax in float32 of the
  attention logits over the whole causal row (all keys, not the visual ones alone), averaged over
  heads and over the query rows, then the visual columns. Query rows by `schedule.query`: "last"
  the last text token, "all" all text tokens after the visual input, "salient" those that
  `method.salient_rows(text, visual, mask)` marks, called once on the embeddings that enter layer
  0. A sequence with no text after its visual input uses the row of its last visual token.
  With `schedule.scorer` "next", queries and keys are layer l's own (its input norm, projections
  and rotary embedding on the hidden states about to enter it); with "previous", those of
  layer l - 1, as that layer computed them.
- `keys` (B, n, Dk), if "keys" is in `in_llm_needs`: keys after the rotary embedding, key heads
  concatenated, of the layer that `scorer` names; `text_keys` (B, Q, Dk) likewise the same of the
  text tokens after the visual input, `text` (B, Q, D) their hidden states, with `text_mask`.
- `hidden` (B, n, D), entering layer l; `size`, `anchor` and `grid` from the reduction so far.

`inside` returns a `Reduction` over the n tokens whose `features` replace `hidden`. If
`method.proportional_attention`, log(size) is added to the attention logits of every visual key.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from compress import ops
from compress.budget import Allocation, Plan, Schedule, resolve_budget, solve
from compress.ops import windows
from compress.tokens import LayerTokens, Reduction, VisualTokens


@dataclass(frozen=True)
class Method:
    """Base of all methods; by itself, keep everything.

    Class attributes, the method's face to an attachment (see the module's text):
    space: "pre_projector" or "projected". requires: fields of VisualTokens without which it cannot run.
    wants: fields used where given. pairwise: builds a table of N x N (long videos are cut into
    windows of whole frames, at most 8,192 cells each). per_frame: a video's frames are reduced
    one by one, each to its share of the tokens. scoring_layer: vision layer of `saliency`,
    None for the one whose output the projector gets (-2 in LLaVA-1.5, as published).
    in_llm_only: reduces nothing before the language model.
    proportional_attention: whether log(size) is added to the attention logits of a merged token
    (ToMe, section 3); None, where the attention implementation takes a bias. A method that leaves
    the choice to its user has a field of this name.
    """

    features_from: ClassVar[str] = "post_projector"
    requires: ClassVar[frozenset[str]] = frozenset()
    wants: ClassVar[frozenset[str]] = frozenset()
    in_llm_needs: ClassVar[frozenset[str]] = frozenset({"scores"})
    pairwise: ClassVar[bool] = False
    per_frame: ClassVar[bool] = False
    scoring_layer: ClassVar[int | None] = None
    in_llm_only: ClassVar[bool] = False
    repeats_anchors: ClassVar[bool] = False
    resizes_input: ClassVar[bool] = False
    proportional_attention: ClassVar[bool | None] = False

    def __post_init__(self) -> None:
        """Raise TypeError for a field whose value is not of its type, ValueError if not finite."""
        hints = get_type_hints(type(self))
        for option in fields(self):
            value, name = getattr(self, option.name), f"{type(self).__name__}: {option.name}"
            if not _fits(value, hints[option.name]):
                raise TypeError(f"{name} is {value!r}; expected {option.type}")
            parts = value if isinstance(value, tuple) else (value,)
            if any(isinstance(part, float) and not math.isfinite(part) for part in parts):
                raise ValueError(f"{name} is {value!r}; it must be finite")

    @property
    def needs(self) -> frozenset[str]:
        """Fields of VisualTokens that this configuration must be given."""
        return self.requires

    @property
    def saliency_rule(self) -> str:
        """Whose attention makes `saliency`: "cls", "received" or "auto"."""
        return "auto"

    @property
    def query_rows(self) -> str:
        """Rows of the attention map whose mean ranks visual tokens in the language model.

        "last": the last text token. "all": all text tokens after the visual input. "salient": those
        that `salient_rows` marks.
        """
        return "last"

    @property
    def scored_by(self) -> str:
        """Whose attention ranks the tokens that are about to enter decoder layer l.

        "next": layer l itself, applied to the hidden states that enter it. "previous": layer l - 1,
        as it computed it.
        """
        return "next"

    def schedule(self, keep: int, depth: int) -> Schedule:
        """The schedule for `keep` tokens entering a language model of `depth` layers."""
        return ()

    def plans(self, dense: int, depth: int) -> Iterator[Plan]:
        """Ways to turn a count into an allocation: the method's own, then its concessions.

        `allocate` takes the first that can reach the budget. By default the free count is what
        enters the language model; where the schedule takes too much to reach a high budget even
        from all tokens, its last stages are given up one by one.
        """
        stages = len(self.schedule(dense, depth))
        for left in range(stages, -1, -1):

            def plan(count: int, left: int = left) -> Allocation:
                return Allocation(dense, depth, count, self.schedule(count, depth)[:left])

            yield plan

    def allocate(self, dense: int, depth: int, budget: int | float) -> Allocation:
        """Counts whose mean over the decoder layers is the nearest reachable to `budget`.

        dense: cells of the visual input; depth: decoder layers; budget: an int count or a float
        fraction of `dense`. A budget of all cells is keep-all with no schedule.
        """
        target = resolve_budget(budget, dense)
        if target == dense:
            return Allocation(dense, depth, dense)
        return solve(self.plans(dense, depth), dense, target)

    def reduce(
        self,
        tokens: VisualTokens,
        keep: int,
        generator: torch.Generator | None = None,
        check: bool = True,
    ) -> Reduction:
        """Reduce (B, N, D) to (B, keep, D) before the language model; keep == N is the identity.

        Raises ValueError if `keep` is not in 1..N, if a needed field is absent, or if a value is
        NaN or infinite.
        """
        n = tokens.count
        if isinstance(keep, bool) or not isinstance(keep, int):
            raise TypeError(f"keep must be an int, got {keep!r}")
        if not 1 <= keep <= n:
            raise ValueError(f"keep is {keep}; it must be 1..{n} (the cells given)")
        if keep == n:
            return Reduction.identity(tokens.features, tokens.size)
        name = type(self).__name__
        if self.in_llm_only:
            raise ValueError(
                f"{name} reduces inside the language model only: keep must be {n} (all cells) "
                f"before it, got {keep}"
            )
        for need in sorted(self.needs):
            if getattr(tokens, need) is None:
                raise ValueError(f"{name} needs {need}, which was not given")
        if check:
            tokens.check_finite()
        pick = partial(self.select, generator=generator)
        with torch.autocast(tokens.features.device.type, enabled=False):
            if self.per_frame and tokens.grid[0] > 1:
                return windows.by_frame(tokens, keep, pick)
            if self.pairwise and n > windows.CELLS:
                return windows.by_window(tokens, keep, pick)
            return pick(tokens, keep)

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        """The method itself: 1 <= keep < N, fields checked."""
        raise NotImplementedError(f"{type(self).__name__} has no reduction before the LLM")

    def reduce_in_llm(
        self, tokens: LayerTokens, count: int, generator: torch.Generator | None = None
    ) -> Reduction:
        """Reduce n tokens to `count` at a stage of the schedule; 0 drops all, n keeps all.

        Raises ValueError if `count` is not in 0..n or a needed field is absent.
        """
        n = tokens.hidden.shape[1]
        if not 0 <= count <= n:
            raise ValueError(f"count is {count}; it must be 0..{n} (the tokens given)")
        if count == n:
            return Reduction.identity(tokens.hidden, tokens.size)
        if count == 0:
            empty = tokens.anchor.new_empty(len(tokens.anchor), 0)
            return ops.prune(tokens.hidden, empty, tokens.size)
        for need in sorted(self.in_llm_needs):
            if getattr(tokens, need) is None:
                raise ValueError(f"{type(self).__name__} needs {need}, which was not given")
        with torch.autocast(tokens.hidden.device.type, enabled=False):
            return self.select_in_llm(tokens, count, generator)

    def select_in_llm(
        self, tokens: LayerTokens, count: int, generator: torch.Generator | None
    ) -> Reduction:
        """The rule at a stage: 1 <= count < n, fields checked. Here: the highest scores."""
        return ops.prune(tokens.hidden, ops.top(tokens.need("scores"), count), tokens.size)

    def salient_rows(self, text: Tensor, visual: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, Q) bool: text rows used as queries when the schedule's query is "salient".

        text: (B, Q, D), visual: (B, n, D), as they enter layer 0; mask: (B, Q) real tokens.
        The text tokens most attended from the image (`ops.text_raters`), and the last one.
        """
        mask = text.new_ones(text.shape[:2], dtype=torch.bool) if mask is None else mask
        rows = ops.text_raters(text, visual, mask)
        if rows.shape[1] == 0:
            return rows
        place = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(mask, place, -1).amax(1, keepdim=True)
        return rows | (place == last)


def _fits(value: object, hint: Any) -> bool:
    """Whether a value is of a plain option's type; a whole number is a float too, a bool neither.

    Types of other kinds, which a user's own method may have, are not looked at.
    """
    kinds = get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(part, kinds[0]) for part in value)
    if get_origin(hint) is UnionType:
        return any(_fits(value, kind) for kind in kinds)
    if hint in (int, float):
        number: type = Integral if hint is int else Real
        return isinstance(value, number) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in (bool, str, NoneType) else True


def choose(owner: object, **options: tuple[str, ...]) -> None:
    """Raise ValueError unless each named field of `owner` is one of its known values."""
    for name, known in options.items():
        value = getattr(owner, name)
        if value not in known:
            wanted = ", ".join(map(repr, known))
            raise ValueError(f"{type(owner).__name__}: {name} is {value!r}; expected {wanted}")
