"""The base class of all methods, and what a model's runtime hands to a method.

A method is a frozen dataclass; its fields are its whole configuration. It has up to three parts:

1. `allocate(dense, depth, budget)` turns a budget into counts: how many visual tokens enter the
   language model, and how many are left from which decoder layer on
   (`compress.budget.Allocation`).
2. `reduce(tokens, keep)` reduces `VisualTokens` before the language model (pre-LLM). Subclasses
   override `select`; `reduce` checks the input, handles keep-all, and cuts long videos.
3. `reduce_in_llm(tokens, count)` reduces `LayerTokens` before a decoder layer of the schedule
   (in-LLM). Subclasses override `select_in_llm`.

Pre-LLM
-------
`reduce` gets `VisualTokens` with every field in `method.needs`, and those in `method.wants` that
the model has.

- `features` are taken before the projector if `method.features_from` is "pre_projector", after it
if
  it is "post_projector".
- `saliency` is the attention that a token receives in vision layer `method.scoring_layer` (None:
the
  layer whose output goes into the projector). It is softmax attention in float32, averaged over
  heads: the row of the class token if `method.saliency_rule` is "cls", the mean over all rows if it
  is "received". "auto" means "cls" where the vision encoder has a class token.
- `keys` and `attention` come from the same layer.
- An input without text has an empty `text_query`, or a `text_query_mask` that is all False. A
method
  then leaves out the part that reads text.

In-LLM
------
At each pair (l, count) of the schedule `reduce_in_llm` gets the visual tokens of every sequence, in
their order, about to enter decoder layer l:

- `hidden` (B, n, D), the hidden states that enter layer l; `size`, `anchor` and `grid` as the
  reductions so far left them.
- `scores` (B, n) float32, if `method.in_llm_needs` has "scores": what ranks the visual tokens, by
  `method.score`. By default it is attention from text to them: softmax attention in float32 over
  the whole causal row, averaged over heads and over the query rows, of which the visual columns are
  taken. Query rows are those that `method.query_rows` names; "salient" rows are marked by
  `method.salient_rows`, called once on the embeddings that enter layer 0. A sequence without text
  after its visual input uses the row of its last visual token.
- `keys` (B, n, Dk), if `in_llm_needs` has "keys": keys after the rotary embedding, key heads
  concatenated.
- `text` (B, Q, D), `text_keys` (B, Q, Dk) and `text_mask`, if named there: hidden states and keys
of
  the text tokens after the visual input.

Scores and keys are those of layer l, applied to the hidden states that enter it, if
`method.scored_by` is "next"; those of layer l - 1 if it is "previous".

The returned `Reduction` replaces the hidden states. If `method.proportional_attention` is set,
log(size) is added to the attention logits of every visual key.
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
from compress.tokens import Grid, LayerTokens, Reduction, VisualTokens

SCORES = ("attention", "prior", "random", "change")


@dataclass(frozen=True)
class Method:
    """Base class of all methods.

    Class attributes describe a method to the runtime (see the module's text):

    features_from: "pre_projector" or "post_projector", where the features are taken.
    requires: fields of `VisualTokens` without which the method cannot run. A method whose
        requirements depend on its options overrides `needs`.
    wants: fields that are used if the model has them.
    in_llm_needs: fields of `LayerTokens` that `select_in_llm` reads.
    pairwise: the method builds an N x N table. Long videos are cut into windows of whole frames, at
        most `windows.WINDOW` = 8,192 tokens each.
    per_frame: the frames of a video are reduced one by one, each to its share of the tokens.
    in_llm_only: nothing is reduced before the language model.
    resizes_input: the vision encoder is given a smaller image instead: one of `input_side(grid,
        keep)` patches a side, each of which stands for a block of `input_blocks(grid, keep)`.
    prunes_patches: cells of the picture are left out before the vision encoder: those that
        `kept_cells(cells, grid, most)` does not name.
    repeats_anchors: two rows may stand for the same token.
    """

    features_from: ClassVar[str] = "post_projector"
    requires: ClassVar[frozenset[str]] = frozenset()
    wants: ClassVar[frozenset[str]] = frozenset()
    in_llm_needs: ClassVar[frozenset[str]] = frozenset({"scores"})
    pairwise: ClassVar[bool] = False
    per_frame: ClassVar[bool] = False
    in_llm_only: ClassVar[bool] = False
    resizes_input: ClassVar[bool] = False
    prunes_patches: ClassVar[bool] = False
    repeats_anchors: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise TypeError for a field whose value is not of its type, ValueError if not finite, or
        if `score` is not known."""
        hints = get_type_hints(type(self))
        for option in fields(self):
            value, name = getattr(self, option.name), f"{type(self).__name__}: {option.name}"
            if not _fits(value, hints[option.name]):
                raise TypeError(f"{name} is {value!r}; expected {option.type}")
            values = value if isinstance(value, tuple) else (value,)
            if any(isinstance(v, float) and not math.isfinite(v) for v in values):
                raise ValueError(f"{name} is {value!r}; it must be finite")
        choose(self, score=SCORES)

    @property
    def needs(self) -> frozenset[str]:
        """Fields of `VisualTokens` that this configuration must be given."""
        return self.requires

    @property
    def scoring_layer(self) -> int | None:
        """Vision layer of `saliency`, `keys` and `attention`.

        None: the layer whose output goes into the projector (-2 in LLaVA-1.5).
        """
        return None

    @property
    def saliency_rule(self) -> str:
        """Whose attention makes `saliency`: "cls", "received" or "auto"."""
        return "auto"

    @property
    def ordered(self) -> bool:
        """Whether the rows of a pre-LLM reduction ascend by anchor: False for a released order."""
        return True

    @property
    def query_rows(self) -> str:
        """Rows of the attention map whose mean ranks visual tokens in the language model.

        "last": the last text token. "all": all text tokens after the visual input. "salient": those
        that `salient_rows` marks.
        """
        return "last"

    @property
    def score(self) -> str:
        """What ranks visual tokens in the language model, one of `SCORES`. A method that leaves the
        choice to its user has a field of this name.

        "attention": attention of the query rows. "prior": P log(P / Q), P that attention and Q the
        attention of the first text token after the input, which has not seen the question, both
        normalised over the input's tokens (PriorTR, arXiv 2606.24156); P alone where no text
        follows. "random": a draw, the same for every input without a generator (what remains of
        any score in deep layers, by Information Horizon, arXiv 2512.07580). "change": the norm of
        the difference between the hidden states that enter layers l and l - 1 (V2Drop, CVPR 2026).
        """
        return "attention"

    @property
    def reads_scores(self) -> bool:
        """Whether what ranks tokens is read from the attention of a decoder layer."""
        return self.score in ("attention", "prior") and "scores" in self.in_llm_needs

    @property
    def draws_scores(self) -> bool:
        """Whether what ranks tokens is drawn."""
        return self.score == "random"

    @property
    def scored_by(self) -> str:
        """Whose attention ranks the tokens that are about to enter decoder layer l.

        "next": layer l itself, applied to the hidden states that enter it. "previous": layer l - 1,
        as it computed it.
        """
        return "next"

    @property
    def proportional_attention(self) -> bool | None:
        """Whether log(size) is added to the attention logits of a merged token (ToMe, section 3).

        None: where the attention implementation takes a bias. A method that leaves the choice to
        its user has a field of this name.
        """
        return False

    def input_side(self, grid: Grid, keep: int) -> int:
        """Patches a side of the image that the vision encoder is given, if `resizes_input`.

        grid: of the dense tokens. Raises ValueError if inputs of this grid cannot be resized.
        """
        raise NotImplementedError(f"{type(self).__name__} does not resize its input")

    def input_blocks(self, grid: Grid, keep: int) -> Tensor:
        """(N,) int64: the patch of the smaller image that each dense token lies in."""
        raise NotImplementedError(f"{type(self).__name__} does not resize its input")

    def kept_cells(self, cells: Tensor, grid: Grid, most: int) -> Tensor:
        """(N,) bool: the cells (N, C) of one input that stay, `most` at most, if
        `prunes_patches`."""
        raise NotImplementedError(f"{type(self).__name__} does not look at pixels")

    def schedule(self, keep: int, depth: int) -> Schedule:
        """The in-LLM schedule for `keep` tokens that enter a language model of `depth` layers."""
        return ()

    def own_schedule(self, depth: int) -> Schedule:
        """The schedule at half of many tokens: where the method prunes in the language model."""
        many = 1 << 12
        return next(self.plans(2 * many, depth))(many).schedule

    def plans(self, dense: int, depth: int) -> Iterator[Plan]:
        """Functions from a count to an allocation, the method's own first.

        `allocate` takes the first one that can reach the budget. By default the count is the number
        of tokens that enter the language model. A schedule may drop too much for a high budget to
        be reached even if all tokens enter: its last pairs are then given up one by one.
        """
        pairs = len(self.schedule(dense, depth))
        for left in range(pairs, -1, -1):

            def plan(count: int, left: int = left) -> Allocation:
                return Allocation(dense, depth, count, self.schedule(count, depth)[:left])

            yield plan

    def allocate(self, dense: int, depth: int, budget: int | float) -> Allocation:
        """The allocation whose mean count over the decoder layers is nearest to `budget`.

        dense: visual tokens of the input. depth: decoder layers. budget: a count (int) or a
        fraction of `dense` (float in (0, 1]). A budget of all tokens keeps all and has no schedule.
        Raises TypeError or ValueError for a budget that cannot be.
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

        check: look for values that are NaN or infinite, which waits once for a GPU. A caller that
        passes False has looked at `VisualTokens.finite_sums` itself.

        Raises TypeError or ValueError if `keep` is not an int in 1..N, ValueError if a needed field
        is missing or a value is not finite.
        """
        n, name = tokens.count, type(self).__name__
        if isinstance(keep, bool) or not isinstance(keep, int):
            raise TypeError(f"keep must be an int, got {keep!r}")
        if not 1 <= keep <= n:
            raise ValueError(f"keep is {keep}; it must be 1..{n} (the tokens given)")
        if keep == n:
            return Reduction.identity(tokens.features, tokens.size)
        if self.in_llm_only:
            raise ValueError(
                f"{name} reduces in the language model only: before it, keep must be {n} (all "
                f"tokens), got {keep}"
            )
        _require(name, tokens, self.needs)
        if check:
            tokens.check_finite()
        select = partial(self.select, generator=generator)
        with torch.autocast(tokens.features.device.type, enabled=False):
            if self.per_frame and tokens.grid[0] > 1:
                return windows.by_frame(tokens, keep, select)
            if self.pairwise and n > windows.WINDOW:
                return windows.by_window(tokens, keep, select)
            return select(tokens, keep)

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        """The pre-LLM reduction itself: 1 <= keep < N, all needed fields given."""
        raise NotImplementedError(f"{type(self).__name__} has no reduction before the LLM")

    def reduce_in_llm(
        self, tokens: LayerTokens, count: int, generator: torch.Generator | None = None
    ) -> Reduction:
        """Reduce n tokens to `count` before a decoder layer; 0 drops all, n keeps all.

        Raises ValueError if `count` is not in 0..n or a needed field is missing.
        """
        n = tokens.hidden.shape[1]
        if not 0 <= count <= n:
            raise ValueError(f"count is {count}; it must be 0..{n} (the tokens given)")
        if count == n:
            return Reduction.identity(tokens.hidden, tokens.size)
        if count == 0:
            empty = tokens.anchor.new_empty(len(tokens.anchor), 0)
            return ops.prune(tokens.hidden, empty, tokens.size)
        _require(type(self).__name__, tokens, self.in_llm_needs)
        with torch.autocast(tokens.hidden.device.type, enabled=False):
            return self.select_in_llm(tokens, count, generator)

    def select_in_llm(
        self, tokens: LayerTokens, count: int, generator: torch.Generator | None
    ) -> Reduction:
        """The in-LLM reduction itself: 1 <= count < n, all needed fields given.

        By default the tokens with the highest scores stay.
        """
        return ops.prune(tokens.hidden, ops.top(tokens.need("scores"), count), tokens.size)

    def salient_rows(self, text: Tensor, visual: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, Q) bool: the query rows if `query_rows` is "salient".

        text: (B, Q, D) and visual: (B, n, D) embeddings as they enter layer 0; Q may be 0. mask:
        (B, Q) bool, True at real tokens. By default the text tokens that the visual tokens are most
        similar to (`ops.text_raters`), and the last one. A sequence without text has no row.
        """
        mask = text.new_ones(text.shape[:2], dtype=torch.bool) if mask is None else mask
        rows = ops.text_raters(text, visual, mask)
        if rows.shape[1] == 0:
            return rows
        place = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(mask, place, -1).amax(1, keepdim=True)
        return rows | (place == last)


def _require(name: str, tokens: VisualTokens | LayerTokens, needs: frozenset[str]) -> None:
    """Raise ValueError, naming the method, for the first field that was not given."""
    for need in sorted(needs):
        if getattr(tokens, need) is None:
            raise ValueError(f"{name} needs {need}, which was not given")


def _fits(value: object, hint: Any) -> bool:
    """Whether a value has the type of a field; an int is a float too, a bool is neither.

    Types other than those of plain options, which a user's own method may have, are not checked.
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
