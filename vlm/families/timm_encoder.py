"""Attention in the vision encoders of timm, on pictures of one size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm.attention import LayerReader, Segments
from vlm.families.rotation import rotate_halves, rotate_neighbours
from vlm.inputs import VisualInput


class TimmReader(LayerReader):
    """For attention with one module `qkv`, (n, S, 3 * width), or with norms `q_norm` and `k_norm`
    over a head, (n, heads, S, d), which timm calls in any case; and for those that turn queries and
    keys by an argument `rope` (sin and cos by row), but those of the first `num_prefix_tokens`."""

    def __init__(self, attention: Any) -> None:
        super().__init__(attention)
        self.prefix = getattr(attention, "num_prefix_tokens", 0)
        self.has_class_token = self.prefix > 0

    def attach(self) -> list[Any]:
        """See `AttentionReader.attach`."""
        attention, names = self.attention, ["qkv"]
        handles = []
        if hasattr(attention, "q_norm"):
            names = ["q_norm", "k_norm"]
            handles.append(attention.register_forward_pre_hook(self._turning, with_kwargs=True))
        hooked = ((name, getattr(attention, name)) for name in names)
        return handles + [one.register_forward_hook(self.output_hook(name)) for name, one in hooked]

    def _turning(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.store("rope", kwargs.get("rope"))

    def segments(self, values: Mapping[Any, Any], inputs: Sequence[VisualInput]) -> list[Segments]:
        """See `LayerReader.segments`."""
        scale = float(self.attention.scale)
        if not hasattr(self.attention, "q_norm"):
            split = values["qkv"].unflatten(-1, (3, self.attention.num_heads, -1))
            query, key, _ = split.transpose(1, 3).unbind(2)
            return [Segments(query, key, scale)]
        query, key, rope = values["q_norm"], values["k_norm"], values["rope"]
        if rope is not None:
            sin, cos = (part[None] for part in rope.float().chunk(2, dim=-1))
            rotate = rotate_halves if self.attention.rotate_half else rotate_neighbours
            first = self.prefix

            def turned(x: Tensor) -> Tensor:
                rest = rotate(x[:, :, first:], cos, sin).to(x.dtype)
                return torch.cat([x[:, :, :first], rest], dim=2)

            query, key = turned(query), turned(key)
        return [Segments(query, key, scale)]
