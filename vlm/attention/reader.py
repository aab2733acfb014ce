"""Reading queries and keys of one vision layer while the vision encoder runs.

    reader = adapter.reader(layer)
    handles = reader.attach()
    with reader.capture() as capture:
        model.model.get_image_features(**call)
    heads = capture.heads(adapter.inputs("image", call))

Nothing is asked of the encoder: no attention maps, no other attention kernel. Hooks store what
passes only while a capture of their reader is open in the current context (`contextvars`), and
store it in the capture. Threads that share a model do not see one another's tensors.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlm.attention.heads import Heads, SegmentHeads, Segments
from vlm.inputs import VisualInput

_OPEN: ContextVar[tuple[Capture, ...]] = ContextVar("foveate_captures", default=())


class Capture:
    """What passed the hooks of one reader in one context."""

    def __init__(self, reader: AttentionReader) -> None:
        self.reader = reader
        self._values: dict[Any, Any] = {}

    def store(self, name: Any, value: Any) -> None:
        """Keep a value under a name; a later one replaces it."""
        self._values[name] = value

    def heads(self, inputs: Sequence[VisualInput]) -> Heads:
        """What the layer tells of the inputs that it saw. The captured tensors are given up.

        inputs: those of the captured call, in order.

        Raises RuntimeError if the layer did not run, or ran where hooks are not called.
        """
        values, self._values = self._values, {}
        return self.reader.read(values, inputs)


class AttentionReader(ABC):
    """Reads one layer of a vision encoder.

    has_class_token: whether the first token of each segment is a class token.
    """

    has_class_token = False

    @abstractmethod
    def attach(self) -> list[Any]:
        """Register the hooks. Returns their handles."""

    @abstractmethod
    def read(self, values: Mapping[Any, Any], inputs: Sequence[VisualInput]) -> Heads:
        """`Heads` of the inputs, from what the hooks stored in a capture."""

    @contextmanager
    def capture(self) -> Iterator[Capture]:
        """Store what passes the hooks, in this context, until the block ends."""
        capture = Capture(self)
        token = _OPEN.set((*_OPEN.get(), capture))
        try:
            yield capture
        finally:
            _OPEN.reset(token)

    def store(self, name: Any, value: Any) -> None:
        """Keep a value in the innermost open capture of this reader, if there is one."""
        for capture in reversed(_OPEN.get()):
            if capture.reader is self:
                capture.store(name, value)
                return

    def output_hook(self, name: str) -> Callable[..., None]:
        """A forward hook that stores a module's output."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            self.store(name, output)

        return hook

    def argument_hook(self, name: str) -> Callable[..., None]:
        """A forward pre-hook that stores a keyword argument of a module."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.store(name, kwargs[name])

        return hook


class LayerReader(AttentionReader):
    """A reader of one attention module."""

    def __init__(self, attention: Any) -> None:
        self.attention = attention

    def read(self, values: Mapping[Any, Any], inputs: Sequence[VisualInput]) -> Heads:
        """See `AttentionReader.read`."""
        try:
            segments = self.segments(values, inputs)
        except KeyError:
            raise RuntimeError(
                "the vision layer that gives the scores ran unseen: torch.compile takes code that "
                "it made of another layer, or before there were hooks, for this one. Call "
                "compress() first, set torch._dynamo.config.skip_nnmodule_hook_guards = False, "
                "and compile then"
            ) from None
        return self.heads(segments, self.has_class_token, self.prefix)

    prefix = 0
    heads: type[SegmentHeads] = SegmentHeads

    @abstractmethod
    def segments(self, values: Mapping[Any, Any], inputs: Sequence[VisualInput]) -> list[Segments]:
        """Queries and keys, in the order of the encoder's rows. KeyError if one is missing."""


class ProjectionReader(LayerReader):
    """For layers with modules `q_proj` and `k_proj` (or `q` and `k`), and norms `q_norm` and
    `k_norm` over all heads if it has them, on a batch of images of one size, (n, S, width).

    keeps_class_token: whether the class token goes on to the projector, and so is a row.
    masked: whether the layer is called with an `attention_mask` that is to be followed.
    """

    def __init__(
        self,
        attention: Any,
        has_class_token: bool = False,
        *,
        keeps_class_token: bool = False,
        masked: bool = False,
    ) -> None:
        super().__init__(attention)
        self.has_class_token = has_class_token
        self.prefix = int(has_class_token and not keeps_class_token)
        self._masked = masked

    def attach(self) -> list[Any]:
        """See `AttentionReader.attach`."""
        handles = []
        if self._masked:
            hook = self._mask_hook
            handles.append(self.attention.register_forward_pre_hook(hook, with_kwargs=True))
        for name in ("q", "k"):
            norm = getattr(self.attention, f"{name}_norm", None)
            if norm is None:
                norm = getattr(self.attention, f"{name}_proj", None)
            module = getattr(self.attention, name) if norm is None else norm
            handles.append(module.register_forward_hook(self.output_hook(name)))
        return handles

    def _mask_hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        if mask is not None:
            allowed = mask if mask.dtype == torch.bool else mask == (mask.ndim == 2)
            self.store("mask", allowed[:, None, None] if mask.ndim == 2 else allowed)

    def segments(self, values: Mapping[Any, Any], inputs: Sequence[VisualInput]) -> list[Segments]:
        """See `LayerReader.segments`."""
        heads = self.attention.num_heads
        query, key = (split_heads(values[name], heads) for name in "qk")
        return [Segments(query, key, float(self.attention.scale), values.get("mask"))]


class PaddedReader(ProjectionReader):
    """For pictures that are padded to one number of patches, (n, S, width): those of each picture
    come first. Padding neither attends nor is attended to, and is no row."""

    def segments(self, values: Mapping[Any, Any], inputs: Sequence[VisualInput]) -> list[Segments]:
        """See `LayerReader.segments`."""
        (whole,) = super().segments(values, inputs)
        return cut_to_pictures(whole, inputs)


class PackedReader(ProjectionReader):
    """For layers with `q_proj` and `k_proj` on packed images, (rows, width) or (1, rows, width), in
    which a frame attends to itself.

    turned: whether they are called with `position_embeddings` (cos and sin by row).
    """

    def __init__(self, attention: Any, *, turned: bool = True) -> None:
        super().__init__(attention)
        self._turned = turned

    def attach(self) -> list[Any]:
        """See `AttentionReader.attach`."""
        if not self._turned:
            return super().attach()
        hook = self.argument_hook("position_embeddings")
        handle = self.attention.register_forward_pre_hook(hook, with_kwargs=True)
        return [handle, *super().attach()]

    def segments(self, values: Mapping[Any, Any], inputs: Sequence[VisualInput]) -> list[Segments]:
        """See `LayerReader.segments`."""
        heads = self.attention.num_heads
        query, key = (values[name].flatten(0, -2).unflatten(-1, (heads, -1)) for name in "qk")
        if self._turned:
            query, key = _rotated(query, key, *values["position_embeddings"])
        return packed_segments(query, key, float(self.attention.scaling), inputs)


class FusedReader(LayerReader):
    """For layers with one module `qkv` on packed images, (rows, 3 * width), and norms `q_norm` and
    `k_norm` over a head if it has them, called with `position_embeddings` (cos and sin by row), in
    which a frame attends within itself."""

    def attach(self) -> list[Any]:
        """See `AttentionReader.attach`."""
        hook = self.argument_hook("position_embeddings")
        modules = {"qkv": self.attention.qkv}
        if hasattr(self.attention, "q_norm"):
            modules |= {"query": self.attention.q_norm, "key": self.attention.k_norm}
        return [
            self.attention.register_forward_pre_hook(hook, with_kwargs=True),
            *(one.register_forward_hook(self.output_hook(name)) for name, one in modules.items()),
        ]

    def segments(self, values: Mapping[Any, Any], inputs: Sequence[VisualInput]) -> list[Segments]:
        """See `LayerReader.segments`."""
        query, key, _ = values["qkv"].unflatten(-1, (3, self.attention.num_heads, -1)).unbind(1)
        if hasattr(self.attention, "q_norm"):
            query, key = values["query"], values["key"]
        query, key = _rotated(query, key, *values["position_embeddings"])
        return packed_segments(query, key, float(self.attention.scaling), inputs)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, S, heads * d) -> (B, heads, S, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def cut_to_pictures(whole: Segments, inputs: Sequence[VisualInput]) -> list[Segments]:
    """Segments of padded pictures, one a frame of the inputs, without their padding."""
    parts, first = [], 0
    for count, length in _runs(inputs):
        pictures = slice(first, first + count)
        query, key = (x[pictures, :, :length] for x in (whole.query, whole.key))
        parts.append(Segments(query, key, whole.scale))
        first += count
    return parts


def _runs(inputs: Sequence[VisualInput]) -> list[tuple[int, int]]:
    """Frames that follow one another and have as many rows: how many, and their number of rows."""
    runs: list[tuple[int, int]] = []
    for item in inputs:
        frames = item.grid[0]
        length = item.rows // frames
        if runs and runs[-1][1] == length:
            frames += runs.pop()[0]
        runs.append((frames, length))
    return runs


def packed_segments(
    query: Tensor, key: Tensor, scale: float, inputs: Sequence[VisualInput]
) -> list[Segments]:
    """Packed queries and keys (rows, heads, d) with each frame of the inputs a segment.

    Lengths are known from the inputs' grids, so nothing is read back from the device. Neighbours of
    one length are one `Segments`.
    """
    runs = _runs(inputs)
    sizes = [count * length for count, length in runs]
    parts = zip(runs, query.split(sizes), key.split(sizes), strict=True)
    return [
        Segments(q.unflatten(0, run).transpose(1, 2), k.unflatten(0, run).transpose(1, 2), scale)
        for run, q, k in parts
    ]


def _rotated(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Packed queries and keys (rows, heads, d), rotated by cos and sin (rows, d)."""
    cos, sin = (part[:, None].float() for part in (cos, sin))

    def rotate(x: Tensor) -> Tensor:
        wide = x.float()
        a, b = wide.chunk(2, dim=-1)
        return (wide * cos + torch.cat([-b, a], dim=-1) * sin).to(x.dtype)

    return rotate(query), rotate(key)


@dataclass(frozen=True)
class Call:
    """One call of a watched module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


_WATCHING = threading.RLock()


@contextmanager
def watching(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Call]]:
    """Record the last call of each module, by name, until the block ends. No hook is left behind.

    Hooks that come and go are not safe while another thread calls the same modules, so only one
    thread at a time is in such a block.
    """
    calls: dict[str, Call] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            calls[name] = Call(args, kwargs, output)

        return hook

    with _WATCHING:
        handles = [
            module.register_forward_hook(record(name), with_kwargs=True)
            for name, module in modules.items()
        ]
        try:
            yield calls
        finally:
            for handle in handles:
                handle.remove()
