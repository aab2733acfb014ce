"""Planned positions for a stock rotary embedding, by removable hooks.

The language model receives integers (0, 1, 2, ...) as `position_ids`, so that its masks, its
detection of packed sequences, FlashAttention and `generate` see an ordinary sequence. The hooks
replace the integers by the positions of a `PositionTable`. The stock module rotates a token with
one position that float32 can hold, bit for bit. For a token with several slots, or with a finer
position, the hooks compute cos and sin themselves: angles in float64 modulo 2 pi, cast to float32
and then to the dtype of the model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from positions.channels import ChannelTable, SlotLayout, inverse_frequencies
from positions.errors import PositionError
from positions.table import PositionTable

# Tokens whose float64 angles exist at one time: 4 MiB at head size 128.
BLOCK = 8192

Pairing = Literal["halves", "neighbours", "complex"]

# From the pre-hook to the post-hook of one call. A context variable is of one thread; an attribute
# would be shared by the threads that use the model. It is written for tables with own angles only,
# since torch.compile cannot trace the write.
_LOOKED_UP: ContextVar[Tensor | None] = ContextVar("positions_looked_up", default=None)


class PlannedRotary:
    """Reversible hooks on a transformers rotary embedding.

    Example::

        rotary_emb = model.model.language_model.rotary_emb
        with PlannedRotary(rotary_emb).use(PositionTable.from_plans(plans, mask)):
            ...

    The table is set by `use` or the attribute `table`, or `source` is asked for it at each call.
    While there is none, the module does what it always did. With `source`, several threads may run
    the model at the same time: no state is kept here from one call to the next.

    Args:
        channels: the channel table. By default read off the module.
        source: a callable without arguments that returns the `PositionTable` of the forward that
            runs in this thread, or None. `torch.compile` can trace one that reads a `ContextVar`.

    Raises:
        PositionError: the module has such hooks already, or has no `inv_freq`. When the module is
            called: the table has several axes where the module reads one, or a number of slots that
            does not divide the module's rotary sections.
    """

    def __init__(
        self,
        rotary_emb: nn.Module,
        channels: ChannelTable | None = None,
        source: Callable[[], PositionTable | None] | None = None,
    ) -> None:
        if is_planned(rotary_emb):
            raise PositionError(
                f"{type(rotary_emb).__name__} has planned positions already; remove() them first"
            )
        self.channels = channels or ChannelTable.of(rotary_emb)
        self._axes = self.channels.axes
        self._pairing = _pairing_of(rotary_emb, self._axes)
        self._slotted: dict[tuple[int, SlotLayout, torch.device], ChannelTable] = {}
        self._table: PositionTable | None = None
        self._source = source
        self._handles = [
            rotary_emb.register_forward_pre_hook(self._before, with_kwargs=True),
            rotary_emb.register_forward_hook(self._after, with_kwargs=True),
        ]

    @property
    def table(self) -> PositionTable | None:
        """The table in use without `source`.

        Setting one that the module cannot follow raises PositionError.
        """
        return self._table

    @table.setter
    def table(self, table: PositionTable | None) -> None:
        if table is not None and self._source is not None:
            raise PositionError("table was set, but source= provides the tables: expected one")
        if table is not None:
            self._check(table)
        self._table = table

    def use(self, table: PositionTable) -> PlannedRotary:
        """Set `table` and return self, for a `with` statement.

        Where the module cannot follow the table, the hooks are removed and PositionError is raised.
        """
        try:
            self.table = table
        except PositionError:
            self.remove()
            raise
        return self

    def remove(self) -> None:
        """Remove the hooks. Calling it again does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._table, self._source = [], None, None

    def __enter__(self) -> PlannedRotary:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def _active(self) -> PositionTable | None:
        return self._table if self._source is None else self._source()

    def _check(self, table: PositionTable) -> None:
        if self._axes == 1 and not table.one_axis:
            raise PositionError(
                "the plan has different t, h and w, and this model's rotary embedding reads "
                "one axis: expected a 1-D scheme (Sequential, V2PE, Compact by row or all)"
            )
        if table.slots > 1:
            self._channels_of(table, table.positions.device)

    def _channels_of(self, table: PositionTable, device: torch.device) -> ChannelTable:
        """The channel table with the slots of `table`, on `device`."""
        key = (table.slots, table.layout, device)
        if key not in self._slotted:
            slotted = self.channels.with_slots(*key[:2]) if table.slots > 1 else self.channels
            self._slotted[key] = slotted.to(device)
        return self._slotted[key]

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Replace indices by positions, of the shape that the stock module takes."""
        table = self._active()
        if table is None:
            return None
        self._check(table)
        by_name = "position_ids" in kwargs
        index = kwargs["position_ids"] if by_name else args[1]
        looked_up = table.lookup(index[0] if index.ndim == 3 else index)
        if table.own_angles:
            _LOOKED_UP.set(looked_up)
        real = looked_up[:, :, 0, 0] if self._axes == 1 else looked_up[:, :, 0].permute(2, 0, 1)
        # float32, as the stock module makes of its integers: dynamic scaling reads their dtype.
        real = real.to(index.device, torch.float32)
        if by_name:
            return args, {**kwargs, "position_ids": real}
        return (args[0], real, *args[2:]), kwargs

    def _after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Replace the cos and sin of tokens whose angles the stock module cannot compute."""
        table = self._active()
        if table is None or not table.own_angles:
            return None
        looked_up = _LOOKED_UP.get()
        _LOOKED_UP.set(None)
        assert looked_up is not None, "the pre-hook of the same call sets it"
        layer_type = kwargs.get("layer_type", args[2] if len(args) > 2 else None)
        # Read after the stock forward, which may just have rescaled them (dynamic, longrope).
        inv_freq = inverse_frequencies(module, layer_type)
        prefix = f"{layer_type}_" if layer_type else ""
        scale = getattr(module, f"{prefix}attention_scaling", 1.0)
        turns = isinstance(output, Tensor)  # cos + i sin
        cos, sin = (output.real, output.imag) if turns else output
        if self._pairing is None or cos.shape[-1] != (2 - turns) * inv_freq.numel():
            raise PositionError(
                f"cos of shape {tuple(cos.shape)} for {inv_freq.numel()} frequencies: the layout "
                "of this rotary embedding is not known, so it cannot be used with a plan with "
                "several slots or fine steps"
            )
        channels = self._channels_of(table, looked_up.device)
        needed = table.needs_own_angles(looked_up).to(cos.device).flatten()[:, None]
        positions = looked_up.flatten(0, 1)
        parts = []
        for first in range(0, len(positions), BLOCK):
            block = slice(first, first + BLOCK)
            angles = channels.angles(positions[block], inv_freq).float().to(cos.device)
            angles = _spread(angles, self._pairing)
            parts.append(
                [
                    torch.where(needed[block], (own * scale).to(stock.dtype), stock[block])
                    for own, stock in (
                        (angles.cos(), cos.flatten(0, 1)),
                        (angles.sin(), sin.flatten(0, 1)),
                    )
                ]
            )
        cos_parts, sin_parts = zip(*parts, strict=True)
        cos, sin = torch.cat(cos_parts).view_as(cos), torch.cat(sin_parts).view_as(sin)
        return torch.complex(cos, sin) if turns else (cos, sin)


def is_planned(rotary_emb: nn.Module) -> bool:
    """Whether a `PlannedRotary` is attached to this rotary embedding."""
    hooks = rotary_emb._forward_pre_hooks.values()
    return any(isinstance(getattr(hook, "__self__", None), PlannedRotary) for hook in hooks)


def _spread(angles: Tensor, pairing: Pairing) -> Tensor:
    """(..., C) to (..., 2 C), as the module lays its channels out; complex ones stay C."""
    if pairing == "complex":
        return angles
    if pairing == "halves":
        return torch.cat((angles, angles), dim=-1)
    return angles.repeat_interleave(2, dim=-1)


def _pairing_of(rotary_emb: nn.Module, axes: int) -> Pairing | None:
    """Which two of its 2 C entries the module gives the same channel; None where it is neither.

    Halves: c and c + C (Llama, Qwen). Neighbours: 2 c and 2 c + 1 (Cohere). Complex: C numbers
    cos + i sin (Llama 4). Read off the cos of position 1, of a copy of the module, whose dynamic
    frequencies may change.
    """
    probe = copy.copy(rotary_emb)
    probe._buffers = dict(rotary_emb._buffers)
    inv_freq = inverse_frequencies(rotary_emb)
    position_ids = torch.ones((3, 1, 1) if axes == 3 else (1, 1), device=inv_freq.device)
    layer_types = getattr(rotary_emb, "layer_types", None)
    extra = {"layer_type": layer_types[0]} if layer_types else {}
    try:
        turns = type(probe).forward(probe, inv_freq.new_zeros(1), position_ids, **extra)
        if isinstance(turns, Tensor):
            return "complex" if turns.is_complex() else None
        cos, _ = turns
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError):
        return None
    cos = cos.flatten()
    if torch.equal(cos[: len(cos) // 2], cos[len(cos) // 2 :]):
        return "halves"
    return "neighbours" if torch.equal(cos[::2], cos[1::2]) else None
