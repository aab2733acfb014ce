"""Planned positions for a stock rotary embedding, by hooks that leave no trace.

The language model is handed plain integers (0, 1, 2, ...) as `position_ids`, so that its masks,
its packing detection, FlashAttention and `generate` see an ordinary sequence. At the rotary
embedding the integers are looked up in a table of real positions. A token with one position that
float32 can hold is rotated by the stock module itself, bit for bit; a token with several slots, or
with finer positions, gets cos and sin from the plan's own angles: float64 modulo 2 pi, then
float32, then the model's dtype.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from positions.channels import ChannelTable, inverse_frequencies
from positions.errors import PositionError
from positions.table import PositionTable

# Tokens whose float64 angles exist at one time: 4 MiB at head size 128.
BLOCK = 8192


class PlannedRotary:
    """Reversible hooks on a transformers rotary embedding.

        rotary_emb = model.model.language_model.rotary_emb
        planned = PlannedRotary(rotary_emb)
        planned.table = PositionTable.from_plans(plans, mask)   # replace it before any forward
        ...
        planned.remove()                                        # or use it in a `with` statement

    Without a table (None) the module does what it always did. The caller owns the tables; this
    object keeps nothing from one forward to the next.

    channels: the channel table, where it cannot be read off the module.

    Raises PositionError where the module has hooks of this kind already, or has no `inv_freq`.
    """

    def __init__(self, rotary_emb: nn.Module, channels: ChannelTable | None = None) -> None:
        # A bound method's __self__ tells our hooks from others without marking the module.
        hooks = rotary_emb._forward_pre_hooks.values()
        if any(isinstance(getattr(hook, "__self__", None), PlannedRotary) for hook in hooks):
            raise PositionError(
                f"{type(rotary_emb).__name__} has planned positions already; remove() them first"
            )
        self.channels = channels or ChannelTable.of(rotary_emb)
        self._slotted = self.channels
        self._table: PositionTable | None = None
        self._own = False
        self._looked_up: Tensor | None = None
        self._handles = [
            rotary_emb.register_forward_pre_hook(self._before, with_kwargs=True),
            rotary_emb.register_forward_hook(self._after, with_kwargs=True),
        ]

    @property
    def table(self) -> PositionTable | None:
        """The active table. Setting one that the module cannot follow raises PositionError."""
        return self._table

    @table.setter
    def table(self, table: PositionTable | None) -> None:
        if table is not None and table is not self._table:
            flat = table.positions == table.positions[..., :1]
            if self.channels.axes == 1 and not bool(flat.all()):
                raise PositionError(
                    "the plan has different t, h and w, and this model's rotary embedding reads "
                    "one axis: expected a 1-D scheme (Sequential, V2PE, Compact by row or all)"
                )
            self._slotted = self.channels
            if table.slots > 1:
                self._slotted = self.channels.with_slots(table.slots, table.layout)
            self._own = table.slots > 1 or bool(table.exact.any())
        self._table = table

    def remove(self) -> None:
        """Take the hooks off; calling it again does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._table, self._looked_up = [], None, None

    def __enter__(self) -> PlannedRotary:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Indices to real positions, of the shape that the stock module takes."""
        self._looked_up = None
        if self._table is None:
            return None
        by_name = "position_ids" in kwargs
        index = kwargs["position_ids"] if by_name else args[1]
        looked_up = self._table.lookup(index[0] if index.ndim == 3 else index)
        if self.channels.axes == 1:
            real = looked_up[:, :, 0, 0]
        else:
            real = looked_up[:, :, 0].permute(2, 0, 1)
        # float32, as the stock module makes of its integers: dynamic scaling reads their dtype.
        real = real.to(index.device, torch.float32)
        self._looked_up = looked_up
        if by_name:
            return args, {**kwargs, "position_ids": real}
        return (args[0], real, *args[2:]), kwargs

    def _after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Put the plan's own angles in the place of those that the stock module cannot give."""
        looked_up, self._looked_up = self._looked_up, None
        table = self._table
        if looked_up is None or table is None or not self._own:
            return None
        where = table.planned(looked_up).nonzero(as_tuple=True)
        if not len(where[0]):
            return None
        layer_type = kwargs.get("layer_type", args[2] if len(args) > 2 else None)
        # Read after the stock forward, which may just have rescaled them (dynamic, longrope).
        inv_freq = inverse_frequencies(module, layer_type)
        prefix = f"{layer_type}_" if layer_type else ""
        scale = getattr(module, f"{prefix}attention_scaling", 1.0)
        cos, sin = (part.clone() for part in output)
        spread = _spread(cos, sin, inv_freq.numel())
        for block in range(0, len(where[0]), BLOCK):
            row, token = (index[block : block + BLOCK] for index in where)
            angles = self._slotted.angles(looked_up[row, token], inv_freq)
            angles = spread(angles.float().to(cos.device))
            row, token = row.to(cos.device), token.to(cos.device)
            cos[row, token] = (angles.cos() * scale).to(cos.dtype)
            sin[row, token] = (angles.sin() * scale).to(sin.dtype)
        return cos, sin


def _spread(cos: Tensor, sin: Tensor, channels: int) -> Any:
    """How the module lays its C channels out over 2 C entries: in halves, or in pairs."""
    if cos.shape[-1] == 2 * channels:
        if torch.equal(cos[..., :channels], cos[..., channels:]):
            return lambda angles: torch.cat((angles, angles), dim=-1)
        if torch.equal(sin[..., ::2], sin[..., 1::2]):
            return lambda angles: angles.repeat_interleave(2, dim=-1)
    raise PositionError(
        f"cos of shape {tuple(cos.shape)} for {channels} frequencies: this rotary embedding's "
        "layout is not known, so a plan with several slots or fine steps cannot be given to it"
    )
