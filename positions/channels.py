"""Which axis and which slot each rotary channel reads.

Rotary embeddings of one position (1-D), of three axes (M-RoPE, chunked or interleaved) and of
several slots (PPE) differ only in this table:

    angle[b, s, c] = position[b, s, slot[c], axis[c]] * inv_freq[c]

Channels are counted in the order of a head, c = 0 .. head_dim / 2 - 1. In most models this is the
order of descending frequency; `frequency` holds the order where it is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from positions.errors import PositionError

SlotLayout = Literal["contiguous", "strided"]


@dataclass(frozen=True, eq=False)
class ChannelTable:
    """The axis and the slot that each of C rotary channels reads.

    Args:
        axis: (C,) int64 in {0: t, 1: h, 2: w}.
        slot: (C,) int64 in 0 .. slots - 1.
        slots: K, the number of slots.
        frequency: (C,) int64, the index of each channel's frequency in `inv_freq`. By default the
            index of the channel.
    """

    axis: Tensor
    slot: Tensor
    slots: int = 1
    frequency: Tensor | None = None

    @property
    def axes(self) -> int:
        """The number of axes: 1 for a 1-D model, 3 for M-RoPE."""
        return 3 if bool((self.axis > 0).any()) else 1

    @classmethod
    def flat(cls, channels: int) -> ChannelTable:
        """Return the table of a 1-D model: every channel reads t."""
        return cls(torch.zeros(channels, dtype=torch.int64), torch.zeros(channels).long())

    @classmethod
    def chunked(cls, sections: Sequence[int]) -> ChannelTable:
        """Return the table of Qwen2-VL and Qwen2.5-VL: one run of channels per axis."""
        axis = torch.arange(3).repeat_interleave(torch.tensor(_sections(sections)))
        return cls(axis, torch.zeros_like(axis))

    @classmethod
    def interleaved(cls, sections: Sequence[int]) -> ChannelTable:
        """Return the table of Qwen3-VL: t, h, w alternate, the rest is t ([24, 20, 20])."""
        t, h, w = _sections(sections)
        channel = torch.arange(t + h + w)
        axis = torch.zeros_like(channel)
        for number, width in ((1, h), (2, w)):
            axis[(channel % 3 == number) & (channel < 3 * width)] = number
        return cls(axis, torch.zeros_like(channel))

    @classmethod
    def of(cls, rotary_emb: nn.Module) -> ChannelTable:
        """Return the table of a transformers rotary embedding.

        It is read off the module's recomposition of three axes. Raises PositionError where the
        module has no `inv_freq` or does not recompose three axes.
        """
        inv_freq = inverse_frequencies(rotary_emb)
        count = inv_freq.numel()
        recompose = getattr(rotary_emb, "recomposition_frequencies", None)
        if recompose is None:
            return cls.flat(count)
        # Pass it a number for each axis and frequency, and see where each of them ends up.
        marks = torch.arange(3.0 * count, device=inv_freq.device).view(3, 1, 1, count)
        try:
            entries = recompose(marks).flatten().cpu().long()
        except (RuntimeError, TypeError, ValueError) as error:
            raise PositionError(
                f"{type(rotary_emb).__name__} does not recompose {count} frequencies of three axes "
                f"({error}): expected M-RoPE, or channels= given"
            ) from error
        if len(entries) == 2 * count:
            halves = torch.equal(entries[:count], entries[count:])
            entries = entries[:count] if halves else entries[::2]
        return cls(entries // count, torch.zeros_like(entries), frequency=entries % count)

    def with_slots(self, slots: int, layout: SlotLayout = "contiguous") -> ChannelTable:
        """Divide the channels of each axis among slots (PPE, arXiv 2510.22936, eq. 5 to 7).

        Args:
            layout: "contiguous" gives each slot a run of neighbouring frequencies, as in the paper;
                "strided" gives it every `slots`-th channel, so that it spans all frequencies.

        Raises:
            PositionError: `slots` does not divide the channel count of an axis. (The fallback of
                the released code would move channels from one axis to another.)
        """
        counts = [int(n) for n in torch.bincount(self.axis) if n]
        if slots < 1 or any(count % slots for count in counts):
            common = math.gcd(*counts)
            raise PositionError(
                f"slots={slots} does not divide this model's rotary sections {counts}; choose a "
                f"divisor of {common}"
            )
        if layout not in ("contiguous", "strided"):
            raise PositionError(f"layout={layout!r}: expected 'contiguous' or 'strided'")
        slot = torch.zeros_like(self.axis)
        for axis in self.axis.unique():
            channels = (self.axis == axis).nonzero().squeeze(1)
            rank, width = torch.arange(len(channels)), len(channels) // slots
            slot[channels] = rank // width if layout == "contiguous" else rank % slots
        return replace(self, slot=slot, slots=slots)

    def to(self, device: torch.device | str) -> ChannelTable:
        """Return the same table on another device."""
        frequency = None if self.frequency is None else self.frequency.to(device)
        return replace(
            self, axis=self.axis.to(device), slot=self.slot.to(device), frequency=frequency
        )

    def angles(self, positions: Tensor, inv_freq: Tensor) -> Tensor:
        """Return the angles modulo 2 pi, (..., C) float64 in [0, 2 pi).

        Args:
            positions: (..., K, 3) float64, with K equal to `slots`, or 1 where all slots are equal.
            inv_freq: (C,).
        """
        slot = (self.slot % positions.shape[-2]).to(positions.device)
        read = positions.double()[..., slot, self.axis.to(positions.device)]
        turn = inv_freq.to(positions.device, torch.float64)
        if self.frequency is not None:
            turn = turn[self.frequency.to(positions.device)]
        return torch.remainder(read * turn, 2 * math.pi)


def inverse_frequencies(rotary_emb: nn.Module, layer_type: str | None = None) -> Tensor:
    """Return (C,), the current frequencies of a rotary embedding, scaling included."""
    names = [f"{layer_type}_inv_freq"] if layer_type else []
    for name in (*names, "inv_freq"):
        value = getattr(rotary_emb, name, None)
        if isinstance(value, Tensor):
            return value
    for name, value in rotary_emb.named_buffers():
        if name.endswith("inv_freq") and "original" not in name:
            return value
    raise PositionError(
        f"{type(rotary_emb).__name__} has no inv_freq; expected a transformers rotary embedding"
    )


def _sections(sections: Sequence[int]) -> list[int]:
    widths = [int(n) for n in sections]
    if len(widths) != 3 or any(n < 1 for n in widths):
        raise PositionError(f"sections={list(sections)}: expected three widths (t, h, w)")
    return widths
