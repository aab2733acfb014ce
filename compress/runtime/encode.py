"""The encoding functions under a compression: scores are read, features may be merged."""

from __future__ import annotations

import functools
import inspect
import math
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from compress import ops
from compress.report.clock import Clock
from compress.runtime.adaptive import allocations
from compress.runtime.context import current_context
from compress.runtime.encoded import PIXELS, Encoded
from compress.runtime.phases import chosen_counts
from compress.runtime.reduce_inputs import InputTokens, reduce_inputs
from compress.runtime.settings import Settings
from compress.runtime.tensors import copy_to
from compress.tokens import Reduction
from vlm.attention import AttentionReader, Capture, Heads

# (inputs being encoded, captures by role), for the thread that encodes.
_RUNNING: ContextVar[tuple[Encoded, dict[str, Capture]] | None] = ContextVar(
    "foveate_encoding", default=None
)


class EncodingFunction:
    """Stands in for one `get_{kind}_features` of a model's core while a compression is attached.

    settings: gives the settings of the next call. around: what to do around a call, by kind.
    """

    def __init__(
        self,
        kind: str,
        settings: Callable[[], Settings],
        clock: Clock,
        around: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self.kind, self._settings, self._clock, self._around = kind, settings, clock, around
        adapter = settings().adapter
        self._core = adapter.core
        self._name = f"get_{kind}_features"
        self._own = vars(self._core).get(self._name)
        self._function = getattr(self._core, self._name)
        # The class's own signature: a wrapper on the object may hide the names of its arguments.
        unbound = getattr(type(self._core), self._name)
        self._signature = inspect.signature(unbound.__get__(self._core))
        functools.update_wrapper(self, self._function)
        self._readers = _readers(settings(), kind)
        self._attached = False
        self._thread = threading.local()
        self._resizing = threading.Lock()

    def attach(self) -> list[Any]:
        """Take the function's place and register hooks; returns the hooks' handles."""
        setattr(self._core, self._name, self)
        self._attached = True
        handles = [handle for reader in self._readers.values() for handle in reader.attach()]
        projector = self._settings().adapter.projector_input(self.kind)
        if projector is not None:
            handles.append(projector.register_forward_pre_hook(self._before_projector))
        return handles

    def remove(self) -> None:
        """Give the function its place back."""
        self._attached = False
        if vars(self._core).get(self._name) is self:
            delattr(self._core, self._name)
            if self._own is not None:
                setattr(self._core, self._name, self._own)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # A model may encode one kind by the function of another.
        if not self._attached or _RUNNING.get() is not None:
            return self._function(*args, **kwargs)
        self._clock.restart()
        if current_context() is None:
            with self._clock.encoding_first():
                return self._encode(*args, **kwargs)
        return self._encode(*args, **kwargs)

    def _encode(self, *args: Any, **kwargs: Any) -> Any:
        settings = self._settings()
        call = dict(self._signature.bind(*args, **kwargs).arguments)
        small = {k: v for k, v in call.items() if not k.startswith("pixel_values")}
        encoded = Encoded(self.kind, settings.adapter.inputs(self.kind, call), settings, small)
        with self._around(self.kind), ExitStack() as stack:
            # By hooks that other threads would run into.
            if settings.method.resizes_input or settings.method.prunes_patches:
                stack.enter_context(self._resizing)
            captures = {
                role: stack.enter_context(reader.capture())
                for role, reader in self._readers.items()
            }
            token = _RUNNING.set((encoded, captures))
            try:
                with _resized(encoded), _some_cells(encoded, call):
                    output = self._function(*args, **kwargs)
            finally:
                _RUNNING.reset(token)
            if settings.adapter.projector_input(self.kind) is None:
                began = self._clock.now()
                _read_fields(encoded, captures)
                encoded.reduce_ms += self._clock.now() - began
        encoded.bind(output)
        self._clock.add("reduce", encoded.reduce_ms)
        if encoded.features is not None:
            self._thread.latest = weakref.ref(output)
            if (context := current_context()) is not None:
                context.encoded[self.kind] = encoded
        return output

    def latest(self) -> Encoded | None:
        """What this thread encoded last, as long as its output is in use."""
        reference = getattr(self._thread, "latest", None)
        output = None if reference is None else reference()
        return None if output is None else Encoded.of(output)

    def unseen(self, **kwargs: Any) -> Any:
        """Call the function itself, with nothing read and nothing merged."""
        token = _RUNNING.set((Encoded("", [], self._settings()), {}))
        try:
            return self._function(**kwargs)
        finally:
            _RUNNING.reset(token)

    def _before_projector(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        """Read the scores; merge, for methods that reduce pre-projector features."""
        running = _RUNNING.get()
        if running is None or running[0].kind != self.kind:
            return None
        encoded, captures = running
        began = self._clock.now()
        _read_fields(encoded, captures)
        merged = _reduce_before_projector(encoded, args[0])
        encoded.reduce_ms += self._clock.now() - began
        return None if merged is None else (merged, *args[1:])


def _readers(settings: Settings, kind: str) -> dict[str, AttentionReader]:
    """Readers of the layers that the method's fields come from, by role."""
    adapter, method = settings.adapter, settings.method
    layers = adapter.vision_layers(kind)
    wanted: dict[str, int] = {}
    if any(settings.reads(name) for name in ("saliency", "keys", "attention")):
        wanted["scoring"] = adapter.scoring_layer(kind, method.scoring_layer)
    if settings.reads("shallow_saliency"):  # the 6th of CLIP's 24 layers, in VScan
        wanted["shallow"] = adapter.scoring_layer(kind, max(0, len(layers) // 4 - 1))
    return {role: adapter.reader(layers[number]) for role, number in wanted.items()}


def _resized(encoded: Encoded) -> AbstractContextManager[None]:
    """Smaller pictures for the vision encoder, for methods that ask for them.

    Raises ValueError where the inputs are not images of one grid, or the method refuses it.
    """
    settings, grids = encoded.settings, {item.grid for item in encoded.inputs}
    method = settings.method
    if not method.resizes_input or not grids:
        return nullcontext()
    if len(grids) > 1:
        raise ValueError(
            f"{method!r} on inputs of the grids {sorted(grids)}: expected images of one grid"
        )
    (grid,) = grids
    dense = math.prod(grid)
    keep = settings.allocation(dense).keep
    side = method.input_side(grid, keep)
    if keep == dense:
        return nullcontext()
    return settings.adapter.resized(side, method.input_blocks(grid, keep))


@torch.no_grad()
def _some_cells(encoded: Encoded, call: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Some cells of the pictures for the vision encoder, for methods that ask for them. Waits for
    the device once, as the counts follow from the pixels."""
    settings, inputs = encoded.settings, encoded.inputs
    method, adapter = settings.method, settings.adapter
    if not method.prunes_patches or not inputs:
        return nullcontext()
    cells = adapter.cells(call[PIXELS[encoded.kind]]).split(encoded.counts)
    most = [settings.allocation(count).keep for count in encoded.counts]
    kept = torch.cat(
        [method.kept_cells(*one) for one in zip(cells, [i.grid for i in inputs], most, strict=True)]
    ).cpu()
    keeps = [int(part.sum()) for part in kept.split(encoded.counts)]
    encoded.chosen = [
        settings.entering(count, keep) for count, keep in zip(encoded.counts, keeps, strict=True)
    ]
    if keeps == encoded.counts:
        return nullcontext()
    indices = [part.nonzero().T.to(cells[0].device) for part in kept.split(encoded.counts)]
    encoded.reductions = [
        ops.prune(pixels[None], index) for pixels, index in zip(cells, indices, strict=True)
    ]
    return adapter.some_cells(kept)


@torch.no_grad()
def _read_fields(encoded: Encoded, captures: dict[str, Capture]) -> None:
    """What the scoring layers saw, for each token of each input."""
    settings, inputs = encoded.settings, encoded.inputs
    adapter, method = settings.adapter, settings.method
    for role, capture in captures.items():
        heads = capture.heads(inputs)
        if role == "shallow":
            rows = heads.saliency(method.saliency_rule)[:, None]
            encoded.fields["shallow_saliency"] = adapter.pool(inputs, rows)[:, 0]
            continue
        if settings.reads("saliency"):
            rows = heads.saliency(method.saliency_rule)[:, None]
            encoded.fields["saliency"] = adapter.pool(inputs, rows)[:, 0]
        if settings.reads("keys"):
            encoded.fields["keys"] = adapter.pool(inputs, heads.keys())
        if settings.reads("attention"):
            encoded.attention = _attention_maps(encoded, heads)


def _attention_maps(encoded: Encoded, heads: Heads) -> list[Tensor]:
    """(N, N) an input: attention between its tokens, 0 between crops or frames."""
    pool, segments = encoded.settings.adapter.pool, iter(heads.attention())
    maps = []
    for item in encoded.inputs:
        parts: list[Tensor] = []
        while sum(len(segment) for segment in parts) < item.rows:
            parts.append(next(segments))
        by_query = pool([item], torch.block_diag(*parts))
        maps.append(pool([item], by_query.T.contiguous()).T)
    return maps


def _reduce_before_projector(encoded: Encoded, features: Tensor) -> Tensor | None:
    """The projector's input with merged features in the rows of their carriers; None as it was."""
    settings, inputs = encoded.settings, encoded.inputs
    rows = features.reshape(-1, features.shape[-1])
    if settings.reads("pre_projector"):
        encoded.fields["pre_projector"] = settings.adapter.pool(inputs, rows)
    if settings.method.features_from != "pre_projector":
        return None
    pooled = settings.adapter.pool(inputs, rows)
    tokens = InputTokens(inputs, pooled, encoded.fields, encoded.attention)
    encoded.chosen = allocations(settings, tokens)
    keeps = chosen_counts(settings, encoded.counts, [one.keep for one in encoded.chosen])
    encoded.reductions = reduce_inputs(settings, tokens, keeps)
    if keeps == encoded.counts:
        return None
    repeats = settings.method.repeats_anchors
    encoded.carriers = [
        _carriers(reduction) if repeats else reduction.anchor[0] for reduction in encoded.reductions
    ]
    merged = _write_carriers(rows, encoded)
    return merged.reshape(features.shape)


def _carriers(reduction: Reduction) -> Tensor:
    """(M,) int64: M different tokens whose rows carry the merged features.

    These are the anchors; where a token is the anchor of several, tokens that are no anchor.
    """
    anchor = reduction.anchor[0]
    order = anchor.argsort(stable=True)
    repeated = torch.zeros_like(anchor, dtype=torch.bool)
    repeated[order[1:]] = anchor[order[1:]] == anchor[order[:-1]]
    taken = torch.zeros(reduction.assign.shape[1], dtype=torch.uint8, device=anchor.device)
    taken[anchor] = 1
    spare = taken.sort(stable=True).indices  # tokens that are no anchor come first
    return torch.where(repeated, spare[repeated.long().cumsum(0) - 1], anchor)


def _write_carriers(rows: Tensor, encoded: Encoded) -> Tensor:
    """All rows of the projector's input, with merged features in those of their carriers."""
    reductions, carriers = encoded.reductions or [], encoded.carriers or []
    firsts, row = [], 0
    for item in encoded.inputs:
        firsts.append(row)
        row += item.rows
    sources = []
    for item, first in zip(encoded.inputs, firsts, strict=True):
        source: Tensor = item.source  # type: ignore[assignment]
        sources.append(torch.where(source < 0, torch.tensor(row), source + first))
    counts = [len(carrier) for carrier in carriers]
    offsets = torch.tensor(encoded.offsets).repeat_interleave(torch.tensor(counts))
    source_of, offsets = copy_to(rows.device, torch.cat(sources), offsets)
    index = source_of[torch.cat(carriers) + offsets]
    merged = torch.cat([reduction.features[0] for reduction in reductions]).to(rows.dtype)
    # Separators have no row of their own: what they would carry goes to a row that is cut off.
    return torch.cat([rows, rows[:1]]).index_copy(0, index, merged)[:-1]
