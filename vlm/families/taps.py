"""Reading queries and keys of one vision layer as it runs, so that scores cost next to nothing.

Nothing is asked of the tower: no attention maps, no other attention kernel. Only the rows of
attention that are needed are computed, in float32, from what the layer's projections gave.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# One step of the received attention holds at most this many logits: 64 MiB in float32.
_STEP = 2**24

# Queries, keys, and which keys may be seen: (n, 1, 1 or S, S) bool, None for all.
Block = tuple[Tensor, Tensor, Tensor | None]


class Tap(ABC):
    """A reader of one attention module of a vision tower.

    While `active`, its hooks keep what passes; `take` hands it over as `Heads` and forgets it.
    has_cls: whether the first token of every segment is a class token and not a cell; keeps_cls:
    whether it goes on to the projector, and so is a row all the same.
    """

    has_cls = keeps_cls = False

    def __init__(self) -> None:
        self.active = False
        self._seen: dict[str, Any] = {}

    @abstractmethod
    def attach(self) -> list[Any]:
        """Register the hooks; returns their handles."""

    @abstractmethod
    def blocks(self, rows: Sequence[int]) -> list[Block]:
        """Queries and keys, each (n, heads, S, head_dim), and masks: n segments of S tokens that
        attend to one another; blocks and segments in the order of the tower's rows.

        rows: how many rows each visual input has.
        """

    @property
    @abstractmethod
    def scale(self) -> float:
        """What attention logits are multiplied by."""

    def take(self, rows: Sequence[int]) -> Heads:
        """What was captured since the last call, of inputs with so many rows each.

        Raises RuntimeError if the layer did not run, or ran where hooks are not seen.
        """
        try:
            blocks = self.blocks(rows)
        except KeyError:
            raise RuntimeError(
                "the vision layer that gives the scores ran unseen: torch.compile takes code that "
                "it made of another layer, or before there were hooks, for this one. Call "
                "compress() first, set torch._dynamo.config.skip_nnmodule_hook_guards = False, "
                "and compile then"
            ) from None
        finally:
            self._seen = {}
        return Heads(blocks, self.scale, self.has_cls, self.keeps_cls)

    def keep(self, name: str) -> Any:
        """A forward hook that keeps a module's output under `name`."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if self.active:
                self._seen[name] = output

        return hook


class ProjectionTap(Tap):
    """For layers with modules `q_proj` and `k_proj` (and norms `q_norm`, `k_norm` over all heads
    where it has them) on a batch of images of one size, (n, S, width).

    masked: whether the layer is called with an `attention_mask` that is to be followed.
    """

    def __init__(
        self,
        attention: Any,
        has_cls: bool = False,
        *,
        keeps_cls: bool = False,
        masked: bool = False,
    ) -> None:
        super().__init__()
        self.attention, self.has_cls, self.keeps_cls = attention, has_cls, keeps_cls
        self._masked = masked

    @property
    def scale(self) -> float:
        return float(self.attention.scale)

    def attach(self) -> list[Any]:
        def call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
            if self.active and mask is not None:
                allowed = mask if mask.dtype == torch.bool else mask == (mask.ndim == 2)
                self._seen["mask"] = allowed[:, None, None] if mask.ndim == 2 else allowed

        handles = []
        if self._masked:
            handles.append(self.attention.register_forward_pre_hook(call, with_kwargs=True))
        for name in ("q", "k"):
            norm = getattr(self.attention, f"{name}_norm", None)
            module = getattr(self.attention, f"{name}_proj") if norm is None else norm
            handles.append(module.register_forward_hook(self.keep(name)))
        return handles

    def blocks(self, rows: Sequence[int]) -> list[Block]:
        heads = self.attention.num_heads
        q, k = (self._seen[name].unflatten(-1, (heads, -1)).transpose(1, 2) for name in "qk")
        return [(q, k, self._seen.get("mask"))]


class PackedTap(ProjectionTap):
    """For layers with `q_proj` and `k_proj` on packed images, (1, rows, width), called with
    `position_embeddings` (cos and sin by row); an image attends within itself."""

    @property
    def scale(self) -> float:
        return float(self.attention.scaling)

    def attach(self) -> list[Any]:
        def call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.active:
                self._seen["rotary"] = kwargs["position_embeddings"]

        own = self.attention.register_forward_pre_hook(call, with_kwargs=True)
        return [own, *super().attach()]

    def blocks(self, rows: Sequence[int]) -> list[Block]:
        ((q, k, _),) = super().blocks(rows)
        cos, sin = (part.float() for part in self._seen["rotary"])
        parts = (_rotated(x, cos, sin).split(list(rows), dim=2) for x in (q, k))
        return [(one_q, one_k, None) for one_q, one_k in zip(*parts, strict=True)]


class FusedTap(Tap):
    """For layers with one module `qkv` on packed images, (rows, 3 * width), called with
    `cu_seqlens` and `position_embeddings` (cos and sin by row)."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attention = attention

    @property
    def scale(self) -> float:
        return float(self.attention.scaling)

    def attach(self) -> list[Any]:
        def call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.active:
                self._seen["rotary"] = kwargs["position_embeddings"]
                self._seen["cuts"] = kwargs["cu_seqlens"]

        return [
            self.attention.register_forward_pre_hook(call, with_kwargs=True),
            self.attention.qkv.register_forward_hook(self.keep("qkv")),
        ]

    def blocks(self, rows: Sequence[int]) -> list[Block]:
        q, k, _ = self._seen["qkv"].unflatten(-1, (3, self.attention.num_heads, -1)).unbind(1)
        cos, sin = (part[:, None].float() for part in self._seen["rotary"])
        q, k = (_rotated(x, cos, sin) for x in (q, k))
        lengths = self._seen["cuts"].diff().tolist()
        found: list[Block] = []
        start = at = 0
        while at < len(lengths):
            same = at
            while same < len(lengths) and lengths[same] == lengths[at]:
                same += 1
            stop = start + (same - at) * lengths[at]
            shape = (same - at, lengths[at])
            q_part, k_part = (x[start:stop].unflatten(0, shape).transpose(1, 2) for x in (q, k))
            found.append((q_part, k_part, None))
            start, at = stop, same
        return found


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide = x.float()
    a, b = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat([-b, a], dim=-1) * sin).to(x.dtype)


class Heads:
    """Queries and keys of one layer; what follows from them, by row of the tower.

    Class tokens ask and are asked, but are no rows of what is returned, unless they are kept.
    """

    def __init__(
        self, blocks: list[Block], scale: float, has_cls: bool, keeps_cls: bool = False
    ) -> None:
        self.blocks, self.scale, self.has_cls = blocks, scale, has_cls
        self.first = int(has_cls and not keeps_cls)

    def keys(self) -> Tensor:
        """(R, head_dim): keys as the attention reads them, averaged over heads."""
        return torch.cat([k[:, :, self.first :].mean(1).flatten(0, 1) for _, k, _ in self.blocks])

    def saliency(self, rule: str) -> Tensor:
        """(R,) float32: attention that each row receives, averaged over heads.

        rule: "cls" from the class token, "received" averaged over all queries of the segment,
            "auto" the first where there is a class token. Raises ValueError where there is none.
        """
        if rule == "cls" and not self.has_cls:
            raise ValueError(
                "saliency='cls', but this vision tower has no class token: use 'received' or 'auto'"
            )
        found = []
        for q, k, mask in self.blocks:
            if self.has_cls and rule in ("cls", "auto"):
                seen = None if mask is None else mask[:, :, :1]
                mean = _attention(q[:, :, :1], k, self.scale, seen)[:, :, 0].mean(1)
            else:
                mean = _received(q, k, self.scale, mask)
            found.append(mean[:, self.first :].flatten())
        return torch.cat(found)

    def attention(self) -> list[Tensor]:
        """One (S, S) float32 map a segment, averaged over heads."""
        found: list[Tensor] = []
        for q, k, mask in self.blocks:
            for n in range(len(q)):
                total = torch.zeros((), device=q.device)
                for head in range(q.shape[1]):
                    seen = None if mask is None else mask[n, 0]
                    total = total + _attention(q[n, head], k[n, head], self.scale, seen)
                found.append(total[self.first :, self.first :] / q.shape[1])
        return found


def _received(q: Tensor, k: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """(n, S): attention received by each token, mean over heads and queries; in bounded memory."""
    n, heads, length, _ = q.shape
    step = max(1, _STEP // (heads * length))
    many = max(1, step // length)
    out = []
    for first in range(0, n, many):
        some_q, some_k = q[first : first + many], k[first : first + many]
        some = None if mask is None else mask[first : first + many]
        total = torch.zeros(len(some_q), length, device=q.device)
        for start in range(0, length, step):
            part = slice(start, start + step)
            seen = some if some is None or some.shape[2] == 1 else some[:, :, part]
            total += _attention(some_q[:, :, part], some_k, scale, seen).sum((1, 2))
        out.append(total / (heads * length))
    return torch.cat(out)


def _attention(q: Tensor, k: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Softmax in float32 of q k^T: (..., Q, d), (..., S, d) -> (..., Q, S)."""
    logits = (q.float() * scale) @ k.float().transpose(-1, -2)
    if mask is not None:
        logits = logits.masked_fill(~mask, torch.finfo(torch.float32).min)
    return torch.softmax(logits, dim=-1)
