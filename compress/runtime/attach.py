"""`compress(model, method, budget)`: a reversible reduction of a model's visual tokens.

Hooks on the modules of a stock model (transformers >= 5.20, where the rotary embedding runs once a
forward and `generate` tracks `position_ids`), and its two encoding functions wrapped:

    get_image_features     what is encoded, and the features that the language model will get
    vision scoring layers  queries and keys are read as they pass                (vlm.families.taps)
    merge point            merged features are written in their anchors' place, N rows stay
    core                   token ids are remembered where visual inputs come with them
    language model         the rows that stay are gathered; masks and indices for them   (prefill)
    rotary embedding       indices are looked up in the table of real positions    (PlannedRotary)
    decoder layers         at the layers of the schedule fewer visual tokens go on         (stage)
    final norm             hidden states get their old length back, so that labels stay aligned

What later forwards have to know is bound to the cache object and goes where it goes (state).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from numbers import Integral
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from compress.budget import Allocation, resolve_budget
from compress.errors import CompressionError
from compress.methods import Downsample, Method, get_method
from compress.report.cost import Record, Report
from compress.report.export import export
from compress.runtime.encode import Encoder
from compress.runtime.encoded import Encoded
from compress.runtime.prefill import begin
from compress.runtime.scores import take
from compress.runtime.stage import Pass, add_deepstack, enter_stage
from compress.runtime.state import State, chunk_mask, turn_positions
from compress.runtime.zero import Symmetry
from positions import PPE, ChannelTable, PlannedRotary, Scheme
from vlm.families import ModelAdapter, adapter_of, unwrapped

_ATTACHED: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()

# Attention implementations whose masks can hold numbers to be added.
_ADDITIVE = ("sdpa", "eager")


class Compression:
    """A reduction attached to a model; made by `compress`, taken off by `remove` or `with`."""

    def __init__(
        self,
        model: nn.Module,
        method: str | Method = "duet",
        budget: int | float = 0.25,
        *,
        positions: str | Scheme = "original",
        slots: int | PPE = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        self.adapter: ModelAdapter = adapter_of(model)
        other: Compression | None = _ATTACHED.get(self.adapter.core)
        if other is not None:
            raise CompressionError(
                f"{type(model).__name__} has a compression already ({other.method!r}, budget "
                f"{other.budget!r}); call remove() on it, or leave its with block, first"
            )
        self.method: Method = get_method(method)
        self.budget: int | float = budget
        resolve_budget(budget, self.adapter.cells or 2**62)
        known = positions in ("original", "compact") if isinstance(positions, str) else None
        if known is False or not (known or hasattr(positions, "place")):
            raise ValueError(
                f"positions is {positions!r}: expected 'original', 'compact' or a Scheme"
            )
        if isinstance(self.method, Downsample) and not self.adapter.resizes:
            raise CompressionError(
                f"{self.method!r} needs a vision tower whose pictures can be made smaller, which "
                f"adapter {self.adapter.name!r} has not: give its processor a smaller picture instead"
            )
        self._check_attention()
        self.positions, self.generator = positions, generator
        self.slots = self._slots(slots)
        self.record = Record(self.adapter)
        self.encoded: dict[str, Encoded] = {}
        self._allocations: dict[int, Allocation] = {}
        self._ids: Tensor | None = None
        self._placed = False
        self._labels: Tensor | None = None
        self._ahead = 0
        self.says_next = False  # the one logit asked for is that after the last column
        self._pass: Pass | None = None
        self._handles: list[Any] = []
        self._planned = PlannedRotary(self.adapter.rotary)
        self.symmetry = Symmetry(self.adapter)
        self.encoders = {kind: Encoder(self, kind) for kind in self.adapter.kinds}
        self._attach(model)
        _ATTACHED[self.adapter.core] = self

    # ------------------------------------------------------------ what users call

    def remove(self) -> None:
        """Take every hook off; the model is as it was. Calling it again does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for encoder in self.encoders.values():
            encoder.remove()
        self._planned.remove()
        if _ATTACHED.get(self.adapter.core) is self:
            del _ATTACHED[self.adapter.core]

    def __enter__(self) -> Compression:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def __reduce__(self) -> Any:
        raise TypeError(
            "a model with a compression attached cannot be pickled or copied: call remove() first, "
            "and compress() the copy (save_pretrained works as ever)"
        )

    def report(self) -> Report:
        """What the last prefill cost, beside what it would have cost dense.

        Raises RuntimeError before the first one.
        """
        return self.record.report()

    def export(self) -> list[dict[str, Tensor]]:
        """What the last prefill kept of each visual input, as plain tensors on the host.

        For serving engines, and for `safetensors`. N tokens dense, M kept before the language
        model, m from decoder layer l on:

            grid (3,)          t, h, w of the dense tokens
            keep (N,) bool     tokens that a kept one stands for itself at
            assign (N,) int64  the kept token that each went to, -1 if dropped
            anchor (M,) int64  the dense token that each kept one stands for
            size (M,) int64    tokens merged in each
            positions (M, K, 3) float64
            layers.{l}.assign, layers.{l}.anchor, layers.{l}.size   the same from layer l on

        Raises RuntimeError before the first prefill.
        """
        return export(self.record)

    def overlay(self, image: Any, path: Any = None, index: int = 0) -> Any:
        """Draw what was kept, merged and dropped over `image`; one panel a stage.

        index: which visual input of the last prefill. path: where to save it, if anywhere.
        Returns a PIL image.
        """
        from compress.report.overlay import overlay

        picture = overlay(image, self.record.stages(index))
        if path is not None:
            picture.save(path)
        return picture

    def allocation(self, cells: int) -> Allocation:
        """The counts that the budget gives a visual input of `cells` tokens; all of them where it
        has no more than a budget that is a count."""
        if cells not in self._allocations:
            budget = self.budget
            if isinstance(budget, Integral):
                budget = min(int(budget), cells)
            depth = len(self.adapter.layers)
            self._allocations[cells] = self.method.allocate(cells, depth, budget)
        return self._allocations[cells]

    def answers(self, shape: tuple[int, ...]) -> Tensor | None:
        """(B, S) bool on the host: tokens that the model is to say, which rank no visual token."""
        if self._labels is not None and tuple(self._labels.shape) == tuple(shape):
            return self._labels.cpu() != -100
        if self._ahead:
            spoken = torch.zeros(shape, dtype=torch.bool)
            spoken[:, -self._ahead :] = True
            return spoken
        return None

    def looks_at(self, layer: int) -> bool:
        """Whether, in the forward under way, the sequence that enters decoder layer `layer` is read
        or shortened as a whole. For tools that cut it up (sequence parallelism)."""
        going = self._pass
        if going is None or going.prompt is None:
            return False
        stages = going.prompt.stage_layers
        return going.needs_mask(layer) or layer in stages or layer + 1 in stages

    @property
    def shortened(self) -> bool:
        """Whether the forward under way has left tokens out, which come back at the final norm."""
        return self._pass is not None and self._pass.back is not None

    @property
    def proportional_attention(self) -> bool:
        """Whether log(size) is added: the method wants it, and the attention takes a bias."""
        config: Any = self.adapter.language_model.config
        wanted = self.method.proportional_attention is not False
        return wanted and config._attn_implementation in _ADDITIVE

    # ------------------------------------------------------------ hooks

    def _check_attention(self) -> None:
        config: Any = self.adapter.language_model.config
        sliding = getattr(config, "sliding_window", None) is not None
        every = ["sliding_attention" if sliding else "full_attention"]
        kinds = getattr(config, "layer_types", None) or every
        if set(kinds) != {"full_attention"}:
            raise CompressionError(
                f"{type(self.adapter.language_model).__name__} has layers of the kinds "
                f"{sorted(set(kinds))}: only full attention can lose tokens on the way"
            )
        if self.method.proportional_attention and not self.proportional_attention:
            raise CompressionError(
                f"{self.method!r} adds log(size) to attention logits, which attention "
                f"implementation {config._attn_implementation!r} does not take: expected one of "
                f"{', '.join(_ADDITIVE)}, or the method without its correction by size"
            )

    def _slots(self, slots: int | PPE) -> PPE | None:
        chosen = slots if isinstance(slots, PPE) else PPE(slots)
        if chosen.slots == 1:
            return None
        if self.positions == "compact":
            raise ValueError(
                "slots keep the places that merged tokens came from, and positions='compact' gives "
                "them up: expected one or the other"
            )
        ChannelTable.of(self.adapter.rotary).with_slots(chosen.slots, chosen.layout)
        return chosen

    def _attach(self, model: nn.Module) -> None:
        adapter, add = self.adapter, self._handles.append
        for outer in {id(m): m for m in (model, unwrapped(model))}.values():
            add(outer.register_forward_pre_hook(self._see_call, with_kwargs=True))
        add(adapter.core.register_forward_pre_hook(self._see_ids, with_kwargs=True))
        words = adapter.core.get_input_embeddings()
        add(words.register_forward_hook(lambda *_: self.symmetry.embedded(self)))
        for encoder in self.encoders.values():
            self._handles += encoder.attach()
        lm = adapter.language_model
        add(lm.register_forward_pre_hook(self._enter, with_kwargs=True))
        add(lm.register_forward_hook(self._leave))
        for number, layer in enumerate(adapter.layers):
            add(layer.register_forward_pre_hook(self._layer(number), with_kwargs=True))
        add(adapter.norm.register_forward_pre_hook(self._restore))

    def _see_call(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._labels = kwargs.get("labels")
        ahead = kwargs.get("logits_to_keep", 0)
        # More than one logit: the tokens before the last are candidates, or a completion.
        self._ahead = max(ahead - 1, 0) if isinstance(ahead, int) else 0
        self.says_next = isinstance(ahead, int) and ahead == 1

    def _see_ids(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        media = [kwargs.get(name) for name in self.adapter.media]
        given = any(_holds(x) for x in media)
        ids = kwargs.get("input_ids", args[0] if args else None)
        if given and ids is None:
            raise CompressionError(
                "visual inputs came with inputs_embeds and no input_ids: the places of the visual "
                "tokens are read off the ids, so call the model with input_ids"
            )
        self._ids = ids if given else None
        self._placed = kwargs.get("position_ids") is not None
        self.symmetry.begin(kwargs)

    def _enter(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Before the language model: a prompt with visual inputs, or what follows one."""
        self._pass = None
        ids, self._ids = self._ids, None
        cache = kwargs.get("past_key_values")
        state = State.of(cache)
        if state is not None:
            self._check_rows(state, kwargs["inputs_embeds"])
            state.follow(cache)
        kwargs["inputs_embeds"] = self.symmetry.tie(kwargs["inputs_embeds"])
        if ids is not None:
            trusted = state is None or self._placed
            self._pass = begin(self, kwargs, ids, state, trusted)
        prompt = None if self._pass is None else self._pass.prompt
        if state is None:
            layers = frozenset() if prompt is None else prompt.stage_layers
            self.symmetry.agree(self, layers, kwargs["inputs_embeds"].device)
        elif self._pass is None:
            self._pass = self._go_on(state, kwargs)
        if self._pass is None:
            self._planned.table = None
            return args, kwargs
        self._planned.table = self._pass.table
        return args, kwargs | self._pass.arguments

    def _check_rows(self, state: State, embeds: Tensor) -> None:
        if len(embeds) != len(state.tail):
            raise CompressionError(
                f"{len(embeds)} rows come with a cache that was filled with {len(state.tail)} rows "
                "under a compression: expected the same rows, in the same order"
            )

    def _go_on(self, state: State, kwargs: dict[str, Any]) -> Pass:
        """A forward on the cache with text alone: decoding, or a second turn."""
        embeds: Tensor = kwargs["inputs_embeds"]
        rows, q = embeds.shape[:2]
        new = chunk_mask(kwargs.get("attention_mask"), rows, q, state.dense, embeds.device)
        given = kwargs.get("position_ids") if self._placed else None
        given = turn_positions(state, given, embeds, new, self.adapter.deltas)
        index = torch.arange(state.length, state.length + q, device=embeds.device)
        table = state.extend(new, given if self.positions == "original" else None)
        arguments = {
            "attention_mask": state.seen(0).long(),
            "position_ids": index.expand(rows, -1),
        }
        return Pass(state, arguments, table)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        done, self._pass = self._pass, None
        self._labels, self._ahead, self.says_next = None, 0, False
        self.symmetry.over()
        if done is None:
            return
        cache = output.get("past_key_values")
        if cache is not None:
            done.state.bind(cache)
        if done.prompt is not None:
            self.record.end(done.prompt, cache, repr(self.method))

    def _layer(self, number: int) -> Callable[..., Any]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            going = self._pass
            if going is None:
                self.symmetry.score(self, number, args[0], kwargs)
                return None
            kwargs.update(going.given)
            hidden: Tensor = args[0]
            if going.prompt is not None:
                hidden = add_deepstack(going.prompt, number, hidden)
                if number in going.prompt.stage_layers:
                    self.record.clock.start("reduce")
                    hidden = enter_stage(self, going, number, hidden, kwargs)
                    self.record.clock.stop("reduce")
                elif number:
                    self.symmetry.score(self, number, hidden, kwargs)
                if number + 1 in going.prompt.stage_layers:
                    going.prompt.entered = (hidden, kwargs["position_embeddings"])
            if going.needs_mask(number):
                going.mask_from(number, self.adapter, kwargs, hidden)
                kwargs.update(going.given)
            return (hidden, *args[1:]), kwargs

        return before

    def _restore(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        going = self._pass
        if going is None:
            return None
        hidden = args[0]
        if going.prompt is not None:
            hidden = add_deepstack(going.prompt, len(self.adapter.layers), hidden)
        if going.back is not None:
            hidden = take(hidden, going.back)
        return (hidden, *args[1:])


def _holds(media: Any) -> bool:
    """Whether an argument brings visual inputs: pixels, or pixels or features by name."""
    if isinstance(media, dict):
        return any(value is not None for value in media.values())
    return media is not None


def compress(
    model: nn.Module,
    method: str | Method = "duet",
    budget: int | float = 0.25,
    *,
    positions: str | Scheme = "original",
    slots: int | PPE = 1,
    generator: torch.Generator | None = None,
) -> Compression:
    """Attach a reduction of visual tokens to a stock vision-language model.

        with compress(model, "duet", budget=64) as c:
            out = model.generate(**inputs)
        print(c.report())

    Without a `with` block it stays until `remove()`.

    Args:
        model: a transformers model of a known adapter (`vlm.families`), or a wrapper of one (PEFT,
            DDP, a DeepSpeed engine). Wrap first, compress then.
        method: a name (`list_methods()`) or an instance, such as `Duet(query="all")`.
        budget: mean number of visual tokens per visual input over the decoder layers; an int is a
            count, a float in (0, 1] a fraction of the dense count. The nearest reachable one is
            taken, and reported. An input with fewer tokens than a count keeps all it has.
        positions: "original" leaves every token that is kept at the position that the model itself
            would have given it, and text where it would have stood; "compact" numbers the tokens
            that are left anew; a `positions.Scheme` plans its own.
        slots: how many of its members' positions a token that was merged before the language model
            carries (`positions.PPE`). Tokens merged inside it have those of their anchors.
        generator: the source of draws, for methods that draw.

    Raises:
        ValueError: an unknown method, option or adapter; a budget out of range; a model that has a
            compression already, or whose attention cannot be reduced.
        TypeError: an argument of a wrong kind.
    """
    return Compression(model, method, budget, positions=positions, slots=slots, generator=generator)
