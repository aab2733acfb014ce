"""The vision side under a compression: what is encoded, scores, merging before the projector."""

from __future__ import annotations

import functools
import inspect
import math
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compress.methods import Downsample
from compress.runtime.encoded import Encoded
from compress.runtime.views import reduce_inputs
from compress.tokens import Reduction
from vlm.attention import AttentionReader, Capture, Heads

if TYPE_CHECKING:
    from compress.runtime.attach import Compression


class Encoder:
    """Stands in for one `get_{kind}_features` of a model's core while a compression is attached."""

    def __init__(self, owner: Compression, kind: str) -> None:
        self.owner, self.kind = owner, kind
        core = owner.adapter.core
        self._name = f"get_{kind}_features"
        self._own = vars(core).get(self._name)
        self._function = getattr(core, self._name)
        # The class's own: a wrapper on the object may hide the names of its arguments.
        self._signature = inspect.signature(getattr(type(core), self._name).__get__(core))
        functools.update_wrapper(self, self._function)
        self._readers = self._make_readers()
        self._captures: dict[str, Capture] = {}
        self._busy = False
        self._attached = False
        self._running: Encoded | None = None

    def _make_readers(self) -> dict[str, AttentionReader]:
        """Readers of the layers that the method's fields come from, by role."""
        owner, adapter = self.owner, self.owner.adapter
        fields = owner.method.needs | owner.method.wants
        layers = adapter.vision_layers(self.kind)
        wanted: dict[str, int] = {}
        if fields & {"saliency", "keys", "attention"}:
            wanted["deep"] = adapter.scoring_layer(self.kind, owner.method.scoring_layer)
        if "shallow_saliency" in fields:  # the 6th of CLIP's 24 layers, in VScan
            wanted["shallow_saliency"] = adapter.scoring_layer(
                self.kind, max(0, len(layers) // 4 - 1)
            )
        return {role: adapter.reader(layers[number]) for role, number in wanted.items()}

    def attach(self) -> list[Any]:
        """Take the function's place and register hooks; returns the hooks' handles."""
        setattr(self.owner.adapter.core, self._name, self)
        self._attached = True
        handles = [handle for reader in self._readers.values() for handle in reader.attach()]
        point = self.owner.adapter.projector_input(self.kind)
        if point is not None:
            handles.append(point.register_forward_pre_hook(self._merge))
        return handles

    def remove(self) -> None:
        """Give the function its place back."""
        core = self.owner.adapter.core
        self._attached = False
        if vars(core).get(self._name) is self:
            delattr(core, self._name)
            if self._own is not None:
                setattr(core, self._name, self._own)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # A model may encode one kind by the function of another.
        busy = any(encoder._busy for encoder in self.owner.encoders.values())
        if busy or not self._attached:
            return self._function(*args, **kwargs)
        adapter, record = self.owner.adapter, self.owner.record
        self.owner.symmetry.before(self.owner, self.kind)
        record.restart()
        call = dict(self._signature.bind(*args, **kwargs).arguments)
        encoded = Encoded(self.kind, adapter.inputs(self.kind, call))
        self._running, self._busy = encoded, True
        try:
            with ExitStack() as stack:
                self._captures = {
                    role: stack.enter_context(reader.capture())
                    for role, reader in self._readers.items()
                }
                stack.enter_context(self._resized(encoded))
                output = self._function(*args, **kwargs)
        finally:
            self._running, self._busy = None, False
        if adapter.projector_input(self.kind) is None:
            record.clock.start("reduce")
            self._read(encoded)
            record.clock.stop("reduce")
        features = getattr(output, "pooler_output", None)
        if features is not None:
            encoded.finish(features)
        self.owner.encoded[self.kind] = encoded
        self.owner.symmetry.after(self.owner, self.kind)
        return output

    def _resized(self, encoded: Encoded) -> AbstractContextManager[None]:
        """Pictures of fewer patches for the tower, for methods that want that."""
        owner, grids = self.owner, {item.grid for item in encoded.inputs}
        if not isinstance(owner.method, Downsample) or not grids:
            return nullcontext()
        grid = grids.pop()
        if grids or grid[0] != 1 or grid[1] != grid[2]:
            raise ValueError(
                f"{owner.method!r} on inputs of the grids {sorted({grid, *grids})}: expected "
                "images of one square grid"
            )
        keep = owner.allocation(grid[1] * grid[2]).keep
        if keep == grid[1] * grid[2]:
            return nullcontext()
        return owner.adapter.resized(math.isqrt(keep), owner.method.blocks(grid, keep)[0])

    def unseen(self, **kwargs: Any) -> Any:
        """The function itself, with nothing read and nothing merged."""
        self._busy = True
        try:
            return self._function(**kwargs)
        finally:
            self._busy = False

    @torch.no_grad()
    def _read(self, encoded: Encoded) -> None:
        """What the scoring layers saw, for each token of each input."""
        method, adapter = self.owner.method, self.owner.adapter
        fields = method.needs | method.wants

        def pool(rows: Tensor) -> list[Tensor]:
            return list(adapter.pool(encoded.inputs, rows).split(encoded.counts))

        for role, capture in self._captures.items():
            heads = capture.heads(encoded.inputs)
            if role == "shallow_saliency":
                encoded.fields[role] = pool(heads.saliency(method.saliency_rule))
                continue
            if "saliency" in fields:
                encoded.fields["saliency"] = pool(heads.saliency(method.saliency_rule))
            if "keys" in fields:
                encoded.fields["keys"] = pool(heads.keys())
            if "attention" in fields:
                encoded.fields["attention"] = self._maps(encoded, heads)

    def _maps(self, encoded: Encoded, heads: Heads) -> list[Tensor]:
        """(N, N) an input: attention between its tokens, 0 between crops or frames."""
        segments = iter(heads.attention())
        found = []
        for item in encoded.inputs:
            held: list[Tensor] = []
            while sum(len(segment) for segment in held) < item.rows:
                held.append(next(segments))
            whole = torch.block_diag(*held)
            halfway = self.owner.adapter.pool([item], whole)
            found.append(self.owner.adapter.pool([item], halfway.T.contiguous()).T)
        return found

    def _merge(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        """Before the projector: read the scores; merge, for methods that work here."""
        encoded, owner = self._running, self.owner
        if encoded is None:
            return None
        owner.record.clock.start("reduce")
        self._read(encoded)
        features: Tensor = args[0]
        rows = encoded.by_input(features.reshape(-1, features.shape[-1]))
        parts = list(zip(encoded.inputs, rows, strict=True))
        merged = None
        if "pre_projector" in owner.method.needs | owner.method.wants:
            encoded.fields["pre_projector"] = [owner.adapter.pool([item], x) for item, x in parts]
        if owner.method.features_from == "pre_projector":
            keeps = [owner.allocation(count).keep for count in encoded.counts]
            encoded.reductions = reduce_inputs(
                owner.method,
                encoded.inputs,
                [owner.adapter.pool([item], x) for item, x in parts],
                keeps,
                encoded.fields,
                owner.generator,
            )
            if keeps != encoded.counts:
                encoded.carriers = [_carriers(r) for r in encoded.reductions]
                every = zip(parts, encoded.reductions, encoded.carriers, strict=True)
                done = [_put(x, item.source, r, slots) for (item, x), r, slots in every]
                merged = torch.cat(done).reshape(features.shape)
        owner.record.clock.stop("reduce")
        return None if merged is None else (merged, *args[1:])


def _carriers(reduction: Reduction) -> Tensor:
    """(M,) int64: M different tokens that carry the rows through the projector.

    A row's anchor, but where a cell is the anchor of several rows, others that go.
    """
    anchor = reduction.anchor[0]
    order = anchor.argsort(stable=True)
    again = torch.zeros_like(anchor, dtype=torch.bool)
    again[order[1:]] = anchor[order[1:]] == anchor[order[:-1]]
    if not bool(again.any()):
        return anchor
    free = torch.ones(reduction.assign.shape[1], dtype=torch.bool, device=anchor.device)
    free[anchor] = False
    spare = free.nonzero().flatten()[: int(again.sum())]
    return anchor.index_put((again,), spare)


def _put(rows: Tensor, source: Tensor | None, reduction: Reduction, slots: Tensor) -> Tensor:
    """The rows of an input with merged features in the places of their carriers."""
    places = source.to(rows.device)[slots]  # type: ignore[union-attr]
    real = places >= 0  # separators have no row
    return rows.index_copy(0, places[real], reduction.features[0][real].to(rows.dtype))
