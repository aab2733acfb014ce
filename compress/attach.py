"""`compress(model, method, budget)`: a reversible reduction of a model's visual tokens.

Hooks, and nothing else, on the modules of a stock model (reference: transformers >= 5.20, where
the rotary embedding runs once a forward and `generate` tracks `position_ids`):

    vision scoring layer   queries and keys are read as they pass            (Tap)
    merge point            merged features are written in their anchors' place, N rows stay
    core                   token ids are remembered where visual inputs come with them
    language model         the rows that stay are gathered; masks and indices for them
    rotary embedding       indices are looked up in the table of real positions (PlannedRotary)
    decoder layers         at the layers of the schedule fewer visual tokens go on
    final norm             hidden states get their old length back, so that labels stay aligned

What later forwards have to know is bound to the cache object and goes when it goes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from compress.budget import Allocation, resolve_budget
from compress.encoded import Encoded, reduce_inputs
from compress.methods import Method, get_method
from compress.prefill import Pass, State, begin, enter_stage
from compress.report import Record, Report
from compress.scores import take
from positions import PlannedRotary, Scheme
from vlm.families import Family, family_of

_ATTACHED: weakref.WeakKeyDictionary[nn.Module, Compression]

_TAPPED = frozenset({"saliency", "keys", "attention"})


class CompressionError(ValueError):
    """A model or an input that this compression cannot serve, and what would be right."""


class Compression:
    """A reduction attached to a model; made by `compress`, taken off by `remove` or `with`."""

    def __init__(
        self,
        model: nn.Module,
        method: str | Method = "duet",
        budget: int | float = 0.25,
        *,
        positions: str | Scheme = "home",
        generator: torch.Generator | None = None,
    ) -> None:
        self.family: Family = family_of(model)
        if self.family.core in _ATTACHED:
            other = _ATTACHED[self.family.core]
            raise CompressionError(
                f"{type(model).__name__} has a compression already ({other.method!r}, budget "
                f"{other.budget!r}); call remove() on it, or leave its with block, first"
            )
        self.method: Method = get_method(method)
        self.budget: int | float = budget
        resolve_budget(budget, self.family.cells or 2**62)
        known = positions in ("home", "compact") if isinstance(positions, str) else None
        if known is False or not (known or hasattr(positions, "homes")):
            raise ValueError(f"positions is {positions!r}: expected 'home', 'compact' or a Scheme")
        self.positions, self.generator = positions, generator
        self.record = Record(self.family)
        self.encoded: Encoded | None = None
        self._allocations: dict[int, Allocation] = {}
        self._states: weakref.WeakKeyDictionary[Any, State] = weakref.WeakKeyDictionary()
        self._ids: Tensor | None = None
        self._labels: Tensor | None = None
        self._tower_call: dict[str, Any] = {}
        self._pass: Pass | None = None
        self._handles: list[Any] = []
        self._attach(model)
        _ATTACHED[self.family.core] = self

    # ------------------------------------------------------------ what users call

    def remove(self) -> None:
        """Take every hook off; the model is as it was. Calling it again does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._planned.remove()
        self._states.clear()
        if _ATTACHED.get(self.family.core) is self:
            del _ATTACHED[self.family.core]

    def __enter__(self) -> Compression:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def report(self) -> Report:
        """What the last prefill cost, beside what it would have cost dense.

        Raises RuntimeError before the first one.
        """
        return self.record.report()

    def overlay(self, image: Any, path: Any = None, index: int = 0) -> Any:
        """Draw what was kept, merged and dropped over `image`; one panel a stage.

        index: which visual input of the last prefill. path: where to save it, if anywhere.
        Returns a PIL image.
        """
        from compress.overlay import overlay

        picture = overlay(image, self.record.stages(index))
        if path is not None:
            picture.save(path)
        return picture

    def allocation(self, cells: int) -> Allocation:
        """The counts that the budget gives a visual input of `cells` cells."""
        if cells not in self._allocations:
            depth = len(self.family.layers)
            self._allocations[cells] = self.method.allocate(cells, depth, self.budget)
        return self._allocations[cells]

    # ------------------------------------------------------------ hooks

    def _attach(self, model: nn.Module) -> None:
        family, add = self.family, self._handles.append
        self._planned = PlannedRotary(family.rotary)
        wanted = self.method.needs | self.method.wants
        self._fields = frozenset(wanted & _TAPPED)
        self._tap = family.tap() if self._fields else None
        if self._tap is not None:
            self._handles += self._tap.attach()
        add(model.register_forward_pre_hook(self._see_labels, with_kwargs=True))
        add(family.core.register_forward_pre_hook(self._see_ids, with_kwargs=True))
        add(family.tower.register_forward_pre_hook(self._see_tower, with_kwargs=True))
        point = family.merge_point
        if point.side == "input":
            add(point.module.register_forward_pre_hook(self._merge_input))
        add(point.module.register_forward_hook(self._merge_output))
        lm = family.language_model
        add(lm.register_forward_pre_hook(self._enter, with_kwargs=True))
        add(lm.register_forward_hook(self._leave))
        for number, layer in enumerate(family.layers):
            add(layer.register_forward_pre_hook(self._layer(number), with_kwargs=True))
        add(family.norm.register_forward_pre_hook(self._restore))

    def _see_labels(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._labels = kwargs.get("labels")

    def _see_ids(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        given = any(kwargs.get(name) is not None for name in self.family.media)
        ids = kwargs.get("input_ids", args[0] if args else None)
        if given and ids is None:
            raise CompressionError(
                "visual inputs came with inputs_embeds and no input_ids: the places of the visual "
                "tokens are read off the ids, so call the model with input_ids"
            )
        self._ids = ids if given else None

    def _see_tower(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.record.restart()
        self._tower_call = {"args": args, **kwargs}

    def _merge_input(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        merged = self._encode(args[0])
        return None if merged is None else (merged, *args[1:])

    def _merge_output(self, module: nn.Module, args: Any, output: Tensor) -> Any:
        merged = None
        if self.family.merge_point.side == "output":
            merged = self._encode(output)
        if self.encoded is not None:
            out = output if merged is None else merged
            self.encoded.projected = self.family.split(out, self.encoded.grids)
        return merged

    def _encode(self, features: Tensor) -> Tensor | None:
        """Read the scoring layer; merge where the method works on the tower's features."""
        self.record.clock.start("reduce")
        grids = self.family.grids(features, self._tower_call)
        self.encoded = Encoded(grids)
        if self._tap is not None:
            with torch.no_grad():
                rule = self.method.saliency_rule
                self.encoded.fields = self._tap.read(self._fields, rule, grids)
        inputs = self.family.split(features, grids)
        if "tower" in self.method.needs | self.method.wants:
            self.encoded.fields["tower"] = inputs
        merged = None
        if self.method.space == "tower":
            keeps = [self.allocation(cells).keep for cells in self.encoded.cells]
            self.encoded.reductions = reduce_inputs(
                self.method, inputs, grids, keeps, self.encoded.fields, self.generator
            )
            if keeps != self.encoded.cells:
                rows = [
                    x.index_copy(0, r.anchor[0], r.features[0].to(x.dtype))
                    for x, r in zip(inputs, self.encoded.reductions, strict=True)
                ]
                merged = torch.cat(rows).reshape(features.shape)
        self.record.clock.stop("reduce")
        return merged

    def _enter(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Before the language model: a prompt with visual inputs, or what follows one."""
        self._pass = None
        ids, self._ids = self._ids, None
        cache = kwargs.get("past_key_values")
        state = None if cache is None else self._states.get(cache)
        visual = None
        if ids is not None:
            visual = torch.isin(ids.cpu(), torch.tensor(self.family.placeholders))
        if ids is not None and visual is not None and bool(visual.any()):
            if self.encoded is None:
                raise CompressionError(
                    "the visual features were made before this compression was attached: call the "
                    "model or generate with pixel values"
                )
            self._pass = begin(self, kwargs, ids, visual, state)
        elif state is not None:
            self._pass = state.go_on(kwargs)
        else:
            self._planned.table = None
            return None
        self._planned.table = self._pass.state.table
        return args, kwargs | self._pass.arguments

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        done, self._pass = self._pass, None
        self._labels = None
        if done is None:
            return
        cache = output.get("past_key_values")
        if cache is not None:
            self._states[cache] = done.state
        if done.prefill:
            self.record.end(done, cache, repr(self.method))

    def _layer(self, number: int) -> Callable[..., Any]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            going = self._pass
            if going is None:
                return None
            kwargs.update(going.given)
            if number in going.stage_layers:
                args = (enter_stage(self, going, number, args[0], kwargs), *args[1:])
            if number and number in going.state.valid:
                going.given = going.for_stage(number, self.family, kwargs, args[0])
                kwargs.update(going.given)
            return args, kwargs

        return before

    def _restore(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        going = self._pass
        if going is None or going.back is None:
            return None
        return (take(args[0], going.back), *args[1:])


_ATTACHED = weakref.WeakKeyDictionary()


def compress(
    model: nn.Module,
    method: str | Method = "duet",
    budget: int | float = 0.25,
    *,
    positions: str | Scheme = "home",
    generator: torch.Generator | None = None,
) -> Compression:
    """Attach a reduction of visual tokens to a stock vision-language model.

        with compress(model, "duet", budget=64) as c:
            out = model.generate(**inputs)
        print(c.report())

    Without a `with` block it stays until `remove()`.

    Args:
        model: a transformers model of a known family (`vlm.families`).
        method: a name (`list_methods()`) or an instance, such as `Duet(query="all")`.
        budget: mean number of visual tokens per visual input over the decoder layers; an int is a
            count, a float in (0, 1] a fraction of the dense count. The nearest reachable one is
            taken, and reported.
        positions: "home" leaves every token that is kept at the position that the model itself
            would have given it, and text where it would have stood; "compact" numbers the tokens
            that are left anew; a `positions.Scheme` plans its own.
        generator: the source of draws, for methods that draw.

    Raises:
        ValueError: an unknown method, option or family; a budget out of range; a model that has a
            compression already.
        TypeError: an argument of a wrong kind.
    """
    return Compression(model, method, budget, positions=positions, generator=generator)
