"""What a family tells about its models: where the parts are that a reduction reads and writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

Grid = tuple[int, int, int]


class UnknownFamily(ValueError):  # noqa: N818 - read as a sentence in a traceback
    """The model is not built in a way that Foveate knows."""


@dataclass(frozen=True)
class MergePoint:
    """Where visual features lie as rows in raster order, before the language model sees them.

    module: the module whose input ("input") or output ("output") holds them.
    """

    module: nn.Module
    side: str


class Family(ABC):
    """The parts of one model. A subclass is written for one way of building models.

    name: the family's name. model_types: the values of `config.model_type` that it serves.
    media: arguments of `forward` that bring visual inputs.
    """

    name: ClassVar[str]
    model_types: ClassVar[frozenset[str]]
    media: ClassVar[tuple[str, ...]] = ("pixel_values", "mm_encoder_outputs")

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    # -- the language model ------------------------------------------------------------

    @property
    def core(self) -> Any:
        """The model below the head: it joins text and visual features."""
        return self.model.model

    @property
    def language_model(self) -> Any:
        """The decoder, called by the core with `inputs_embeds`."""
        return self.core.language_model

    @property
    def layers(self) -> Sequence[Any]:
        """The decoder layers, in order."""
        return self.language_model.layers

    @property
    def norm(self) -> nn.Module:
        """The decoder's final norm."""
        return self.language_model.norm

    @property
    def rotary(self) -> nn.Module:
        """The decoder's rotary embedding."""
        return self.language_model.rotary_emb

    @property
    @abstractmethod
    def placeholders(self) -> tuple[int, ...]:
        """Token ids that stand for visual tokens."""

    @property
    def cells(self) -> int | None:
        """Cells of every image, where the family has but one grid; else None."""
        return None

    # -- the vision side ---------------------------------------------------------------

    @property
    @abstractmethod
    def tower(self) -> nn.Module:
        """The vision tower, as one module (for timing)."""

    @property
    @abstractmethod
    def merge_point(self) -> MergePoint:
        """Where features are merged before the language model."""

    @abstractmethod
    def grids(self, features: Tensor, kwargs: Mapping[str, Any]) -> list[Grid]:
        """The grid (t, h, w) of each visual input in `features`, the tensor at the merge point.

        kwargs: the arguments of the call that brought the visual inputs.
        """

    def split(self, features: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        """The tensor at the merge point as one (N, D) tensor a visual input."""
        counts = [t * h * w for t, h, w in grids]
        return list(features.reshape(-1, features.shape[-1]).split(counts))

    @abstractmethod
    def tap(self) -> Tap:
        """A new reader of the scoring layer."""


class Tap(ABC):
    """Reads queries and keys of one vision layer as it runs, so that scores cost next to nothing.

    Nothing is asked of the tower: no attention maps, no other attention kernel.
    """

    @abstractmethod
    def attach(self) -> list[Any]:
        """Register the hooks; returns their handles."""

    @abstractmethod
    def read(
        self, fields: frozenset[str], rule: str, grids: Sequence[Grid]
    ) -> dict[str, list[Tensor]]:
        """For each of `fields`, one tensor a visual input; forgets what was captured.

        fields: of "saliency" (N,) float32, "keys" (N, Dk), "attention" (N, N) float32.
        rule: "cls", "received" or "auto" ("cls" where the tower has a class token).
        """


class ProjectionTap(Tap):
    """For towers with separate q_proj and k_proj, and images of one size: (n, tokens, width).

    has_cls: whether token 0 is a class token and not a cell.
    """

    def __init__(self, attention: Any, has_cls: bool) -> None:
        self.attention, self.has_cls = attention, has_cls
        self._seen: dict[str, Tensor] = {}

    def attach(self) -> list[Any]:
        def keep(name: str) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
                self._seen[name] = output

            return hook

        return [
            getattr(self.attention, f"{name}_proj").register_forward_hook(keep(name))
            for name in ("q", "k")
        ]

    def read(
        self, fields: frozenset[str], rule: str, grids: Sequence[Grid]
    ) -> dict[str, list[Tensor]]:
        q, k = (self._seen.pop(name) for name in ("q", "k"))
        heads = self.attention.num_heads
        q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))
        first = int(self.has_cls)
        if rule == "auto":
            rule = "cls" if self.has_cls else "received"
        if rule == "cls" and not self.has_cls:
            raise ValueError(
                "saliency='cls', but this vision tower has no class token: use 'received' or 'auto'"
            )
        found: dict[str, list[Tensor]] = {}
        if "keys" in fields:
            found["keys"] = list(k[:, :, first:].mean(1))
        if "saliency" in fields and rule == "cls":
            row = _attention(q[:, :, :1], k, self.attention.scale).mean(1)
            found["saliency"] = list(row[:, 0, first:])
        if "attention" in fields or ("saliency" in fields and rule == "received"):
            # Head by head: one (n, tokens, tokens) map at a time.
            total = torch.zeros(())
            for head in range(heads):
                total = total + _attention(q[:, head], k[:, head], self.attention.scale)
            between = total[:, first:, first:] / heads
            if "attention" in fields:
                found["attention"] = list(between)
            if "saliency" in fields and rule == "received":
                found["saliency"] = list((total / heads)[:, :, first:].mean(1))
        return found


def _attention(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Softmax in float32 of q k^T: (..., Q, d), (..., S, d) -> (..., Q, S)."""
    return torch.softmax((q.float() * scale) @ k.float().transpose(-1, -2), dim=-1)
