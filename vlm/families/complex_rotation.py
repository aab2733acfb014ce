"""Vision attention whose rotations are complex numbers, and whose class token comes last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlm.attention import ProjectionReader, Segments
from vlm.inputs import VisualInput


class TurnedReader(ProjectionReader):
    """For tiles (n, S, width) whose queries and keys are rotated by complex `freqs_ci`, (S, 1, c),
    and whose class token comes last."""

    def attach(self) -> list[Any]:
        """See `AttentionReader.attach`."""
        hook = self.argument_hook("freqs_ci")
        handle = self.attention.register_forward_pre_hook(hook, with_kwargs=True)
        return [handle, *super().attach()]

    def segments(self, values: Mapping[Any, Any], inputs: Sequence[VisualInput]) -> list[Segments]:
        """See `LayerReader.segments`."""
        turns = values["freqs_ci"]
        query, key = (self._turned(values[name], turns) for name in "qk")
        return [Segments(query, key, float(self.attention.scaling))]

    def _turned(self, x: Tensor, turns: Tensor) -> Tensor:
        pairs = x.float().unflatten(-1, (self.attention.num_heads, -1, 2)).contiguous()
        turned = torch.view_as_real(torch.view_as_complex(pairs) * turns.to(x.device)).flatten(-2)
        return turned.to(x.dtype).roll(1, dims=1).transpose(1, 2)
