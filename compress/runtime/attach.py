"""`compress(model, method, budget)`: a reversible reduction of a model's visual tokens.

A compression puts hooks on the modules of a stock model and wraps its encoding functions.
`compress.runtime.forward` says which hook does what. What one forward knows is in its
`ForwardContext`, which belongs to the thread and ends with the forward. What later forwards need is
in the `CacheState` on the cache object.

Requires transformers >= 5.20, where the rotary embedding runs once a forward and `generate` tracks
`position_ids`.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from compress.adaptive import Budget
from compress.calibration import Calibration
from compress.defaults import BUDGET, METHOD
from compress.errors import CompressionError
from compress.latency import Fit, Latency
from compress.methods import Method, get_method
from compress.probing.fingerprint import family_of
from compress.probing.verdict import Probe, probe_of, warn_unprobed
from compress.report.clock import Clock
from compress.report.cost import Report, report_of
from compress.report.export import export
from compress.report.record import PrefillRecord
from compress.runtime import forward, hooks
from compress.runtime.attention import install
from compress.runtime.cache_state import cache_length, refuse_caches
from compress.runtime.context import ForwardContext, current_context
from compress.runtime.encode import EncodingFunction
from compress.runtime.folded import folding
from compress.runtime.infinite import capping
from compress.runtime.settings import Settings
from compress.runtime.timing import first_token, fit_latency
from compress.runtime.zero3 import Zero3Symmetry, is_partitioned
from positions import PPE, LMInfinite, PlannedRotary, Scheme
from vlm.families import adapter_of, unwrapped

_ATTACHED: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()


class Compression:
    """A reduction attached to a model; made by `compress`, taken off by `remove` or `with`.

    settings: what was asked for. clock: times of the reduction, for benchmarks. latency: what a
    budget in milliseconds became, None for any other.
    """

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        other: Compression | None = _ATTACHED.get(settings.adapter.core)
        if other is not None:
            raise CompressionError(
                f"{type(model).__name__} has a compression already ({other.settings.method!r}, "
                f"budget {other.settings.budget!r}); call remove() on it, or leave its with block, "
                "first"
            )
        self.settings: Settings = settings
        self.clock = Clock()
        self.latency: Fit | None = None
        self._record: PrefillRecord | None = None
        self._handles: list[Any] = []
        self._encoders = {
            kind: EncodingFunction(kind, lambda: self.settings, self.clock, hooks.around_encoding)
            for kind in settings.adapter.kinds
        }
        self._rotary = PlannedRotary(settings.adapter.rotary, source=hooks.table)
        self._attach(model)
        extends = settings.is_folded or settings.infinite is not None
        extended = folding if settings.is_folded else capping
        self._restore_attention = (
            install(settings.attention_implementation, extended) if extends else None
        )
        _ATTACHED[settings.adapter.core] = self

    # ------------------------------------------------------------ what users call

    def remove(self) -> None:
        """Take every hook off; the model is as it was. Calling it again does nothing.

        A cache that was filled under the compression cannot go on without one: it raises
        CompressionError until the model is compressed again.
        """
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for encoder in self._encoders.values():
            encoder.remove()
        self._rotary.remove()
        if self._restore_attention is not None:
            self._restore_attention()
            self._restore_attention = None
        core = self.settings.adapter.core
        if _ATTACHED.get(core) is self:
            del _ATTACHED[core]
            refuse_caches(core)

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

    def set_budget(self, budget: Budget | Latency) -> None:
        """Use another budget from the next prompt on. A `Latency` runs its calls first, unless the
        times are known.

        Raises ValueError or TypeError for one that is out of range; the old one stays then.
        """
        if not isinstance(budget, Latency):
            self.settings = self.settings.with_budget(budget)
            if self.latency is not None:
                self.latency, self.clock.exact = None, False
            return
        before = self.settings, self.clock.exact
        self.clock.exact = True
        try:
            fit = fit_latency(budget, self.settings, self._first_token)
        except BaseException:
            self.settings, self.clock.exact = before
            raise
        self.settings, self.latency = before[0].with_budget(fit.budget), fit

    def _first_token(self, budget: int | float, call: Mapping[str, Tensor], repeats: int) -> float:
        self.settings = self.settings.with_budget(budget)
        return first_token(self, call, repeats)

    def report(self) -> Report:
        """What the last prefill cost, beside what it would have cost dense.

        Raises RuntimeError before the first one.
        """
        report = report_of(self._last())
        if self.latency is None:
            return report
        return replace(report, latency=self.latency, first=self.clock.first)

    def export(self, pictures: Sequence[Any] | None = None) -> list[dict[str, Any]]:
        """What the last prefill kept of each visual input, as plain values on the host.

        For other engines, and for files (`save_export`). N tokens dense, M that enter the language
        model, all in the order in which they enter; decoder layer l:

            grid (3,) int64        t, h, w of the dense tokens
            keep_index int64       tokens that are kept, ascending, each once
            assign (N,) int64      the kept token that each went to, -1 if dropped
            anchor (M,) int64      the dense token that each kept one stands for
            size (M,) int64        tokens merged in each
            features (M, D)        what the language model received, DeepStack's left out
            positions (M, K, 3) float64    t, h, w, the same thrice in models of one axis
            next_position () float64       where text after the input stands
            layers.{l}.assign, layers.{l}.anchor, layers.{l}.size   from layer l on
            method str             the method and its options
            question_dependent bool        whether the text of the prompt may have decided which
                tokens enter, so that they hold for this question alone. What is left from a later
                layer on always follows the prompt
            source_hash str        `picture_hash` of the picture, if `pictures` are given

        pictures: one a visual input, in order, as (H, W, 3) uint8 or PIL images; the frames
        (F, H, W, 3) of a video.

        Raises RuntimeError before the first prefill, ValueError for another number of pictures.
        """
        return export(self._last(), pictures)

    def overlay(self, image: Any, path: Any = None, index: int = 0) -> Any:
        """Draw what was kept, merged and dropped over `image`; one panel for the tokens that enter
        the language model, and one for each decoder layer that starts with fewer.

        index: which visual input of the last prefill. path: where to save it, if anywhere.
        Returns a PIL image.
        """
        from compress.report.overlay import overlay

        picture = overlay(image, self._last().steps(index))
        if path is not None:
            picture.save(path)
        return picture

    def steps(self, index: int = 0) -> list[tuple[str, tuple[int, int, int], Any]]:
        """Name, dense grid and `Reduction` of visual input `index` of the last prefill, at each
        point where tokens leave; what `overlay` draws.

        Raises RuntimeError before the first prefill, IndexError where there is no such input.
        """
        return self._last().steps(index)

    def reads_whole_sequence(self, layer: int) -> bool:
        """Whether, in the forward under way, the sequence that enters decoder layer `layer` is read
        or shortened as a whole. For tools that cut it up (sequence parallelism)."""
        context = current_context()
        return context is not None and context.reads_whole_sequence(layer)

    @property
    def shortened(self) -> bool:
        """Whether the forward under way has left tokens out, which come back at the final norm."""
        context = current_context()
        prefill = None if context is None else context.prefill
        return prefill is not None and prefill.back is not None

    def _last(self) -> PrefillRecord:
        if self._record is None:
            raise RuntimeError(
                "nothing to report: no prompt with visual inputs has run under this compression yet"
            )
        return self._record

    # ------------------------------------------------------------ hooks

    def _attach(self, model: nn.Module) -> None:
        adapter, add = self.settings.adapter, self._handles.append
        core, language_model = adapter.core, adapter.language_model
        outer = [model, unwrapped(model), core, language_model]
        doors = list({id(module): module for module in outer}.values())
        for door in doors:
            add(door.register_forward_pre_hook(self._open, with_kwargs=True))
        add(core.register_forward_pre_hook(self._enter_core, with_kwargs=True))
        words = core.get_input_embeddings()
        add(words.register_forward_hook(hooks.words_embedded))
        for encoder in self._encoders.values():
            self._handles += encoder.attach()
        add(language_model.register_forward_pre_hook(self._enter_language_model, with_kwargs=True))
        for number, layer in enumerate(adapter.layers):
            add(layer.register_forward_pre_hook(hooks.layer_hook(number), with_kwargs=True))
        add(adapter.norm.register_forward_pre_hook(hooks.restore))
        for door in doors:
            add(door.register_forward_hook(self._close, always_call=True))

    def _open(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """The outermost module that is called makes the context of the forward."""
        context = current_context()
        if context is None:
            context = ForwardContext(self.settings, self.clock, opened_by=module)
            context.open()
            # Decoding asks for no time, which waits for the device where times are exact.
            if any(kwargs.get(name) is not None for name in self.settings.adapter.media):
                context.began = self.clock.now()
        if kwargs.get("labels") is not None:
            context.labels = kwargs["labels"]
        keep = kwargs.get("logits_to_keep")
        if isinstance(keep, int) and keep:
            context.logits_to_keep = keep

    def _close(self, module: nn.Module, args: Any, output: Any) -> None:
        context = current_context()
        if context is None:
            return
        adapter = self.settings.adapter
        over = module is adapter.core or context.opened_by is module is adapter.language_model
        if over and output is not None:
            record = forward.finish(context, output)
            if record is not None:
                self._record, self.clock.over, context.is_recorded = record, True, True
        if context.opened_by is module:
            if context.is_recorded and context.began is not None:
                self.clock.reached(context.began)
            context.close()

    def _enter_core(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        context = current_context()
        if context is None:
            return
        call = {"input_ids": args[0], **kwargs} if args else kwargs
        forward.read_call(context, call, lambda kind: self._encoders[kind].latest())
        cached = context.cache is not None and cache_length(context.cache)
        if not cached and is_partitioned(context.settings.adapter):
            encode = {kind: encoder.unseen for kind, encoder in self._encoders.items()}
            context.zero3 = Zero3Symmetry(context.settings, call, encode)

    def _enter_language_model(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        context = current_context()
        if context is None:
            return None
        if context.opened_by is module:  # called without the core
            forward.read_call(context, kwargs, lambda kind: None)
        waits = context.state is not None and context.arguments is None
        if context.ids is not None or context.zero3 is not None or waits:
            forward.enter_language_model(context, kwargs)
        if context.arguments is None:
            return args, kwargs
        if context.state is not None and "position_ids" not in context.arguments:
            context.state.given = kwargs.get("position_ids")
        return args, kwargs | context.arguments


def compress(
    model: nn.Module,
    method: str | Method = METHOD,
    budget: Budget | Latency = BUDGET,
    *,
    positions: str | Scheme | LMInfinite = "original",
    slots: int | PPE = 1,
    schedule: str | Probe | None = None,
    calibrate: Calibration | None = None,
    keep_phase: float = 0.0,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Compression:
    """Attach a reduction of visual tokens to a stock vision-language model.

        with compress(model, "duet", budget=64) as c:
            out = model.generate(**inputs)
        print(c.report())

    Without a `with` block it stays until `remove()`. Several threads may run the model at once.

    Args:
        model: a transformers model of a known family (`vlm.families`), or a wrapper of one (PEFT,
            DDP, a DeepSpeed engine). Wrap first, compress then.
        method: a name (`list_methods()`) or an instance, such as `Duet(query="all")`.
        budget: mean number of visual tokens per visual input over the decoder layers; an int is a
            count, a float in (0, 1] a share of the dense count. The nearest reachable one is
            taken, and reported. An input with fewer tokens than a count keeps all it has.
            `Coverage` and `Shared` (`compress.adaptive`) give each input a count of its own, and
            `Latency` is what brings the first token in time on this machine.
        positions: "original" leaves every token that is kept at the position that the model itself
            would have given it, and text where it would have stood; "median" does so, too, but for
            a token that was merged before the language model, which stands at the median of its
            members' positions (lower, axis by axis); "compact" numbers the tokens that are left
            without gaps; a `positions.Scheme` plans its own. `positions.LMInfinite` leaves tokens
            at original positions, for a prompt that passes those the model was trained for.
        slots: how many of its members' positions a token that was merged before the language model
            carries (`positions.PPE`). Tokens merged in the language model have those of their
            anchors.
        schedule: how many tokens are left in which decoder layer. None: the method's own schedule.
            "probed": the one that follows from the saved probe of this model
            (`compress.probe(model, processor)`); or a `Probe`.
        calibrate: what is added to the attention logits of visual tokens. None: what the method
            asks for (`Method.proportional_attention`).
        keep_phase: the share of an input's dense tokens that enter the language model whatever the
            method chooses, for the largest mean cosine of their positions over rotary channels, and
            as many for the sine (IVC-Prune, arXiv 2602.03060, takes 0.05): what the model measures
            places against. They are part of the budget. A merged token keeps its features when such
            a member leaves it.
        generator: the source of draws, for methods and schemes that draw.
        options: of a method that is given by name, such as `query="all"` or `scorer="folder"`.

    Text that the model is to say ranks no visual token: labelled tokens, and with
    `logits_to_keep=n` the last n - 1 tokens of the prompt, which assisted decoding fills with
    candidates.

    Raises:
        ValueError: an unknown method, option or family; a budget out of range; a model that has a
            compression already, or whose attention cannot be reduced, or calibrated so
            (CompressionError);
            schedule="probed" for a model without a saved probe.
        TypeError: an argument of a wrong kind, or an option that the method does not have.

    Warns (UnprobedWarning) if the method prunes in the language model by its own schedule, and no
    model of that kind was ever probed.
    """
    chosen = slots if isinstance(slots, PPE) else PPE(slots)
    adapter = adapter_of(model)
    settings = Settings(
        adapter=adapter,
        method=get_method(method, **options),
        budget=1.0 if isinstance(budget, Latency) else budget,
        positions=positions,
        slots=None if chosen.slots == 1 else chosen,
        generator=generator,
        probe=probe_of(schedule, adapter),
        calibrate=calibrate,
        keep_phase=keep_phase,
    )
    compression = Compression(model, settings)
    if isinstance(budget, Latency):
        try:
            compression.set_budget(budget)
        except BaseException:
            compression.remove()
            raise
    if settings.probe is None:
        depth, family = len(adapter.layers), family_of(adapter)
        warn_unprobed(settings.method, depth, family, stacklevel=3)
    return compression
