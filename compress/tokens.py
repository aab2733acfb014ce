"""What a method takes and returns: visual tokens, and their reduction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

Grid = tuple[int, int, int]
_PER_TOKEN = ("features", "keys", "saliency", "pre_projector", "shallow_saliency", "size")


def _expect(name: str, value: Tensor | None, shape: tuple[int | None, ...]) -> None:
    """Raise unless `value` is absent or has `shape` (None = any length)."""
    if value is None:
        return
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    fits = value.dim() == len(shape) and all(
        want is None or have == want for have, want in zip(value.shape, shape, strict=True)
    )
    if not fits:
        wanted = tuple("any" if n is None else n for n in shape)
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {wanted}")


def _floating(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: x for name, x in values.items() if x.is_floating_point()}


def _sums(values: Mapping[str, Tensor]) -> Tensor:
    """Sums of the floating-point tensors, float64, on their device: the cheapest look at all."""
    tensors = _floating(values).values()
    sums = [x.detach().sum(dtype=torch.promote_types(x.dtype, torch.float32)) for x in tensors]
    return torch.stack(sums).double()


def require_finite(values: Mapping[str, Tensor]) -> None:
    """Raise ValueError naming the first floating-point tensor with NaN or infinity.

    One host sync for all of them; a sum that overflows is looked at again.
    """
    for (name, x), total in zip(_floating(values).items(), _sums(values).tolist(), strict=True):
        if not math.isfinite(total) and not bool(x.isfinite().all()):
            raise ValueError(f"{name} holds NaN or infinity; a method cannot rank such values")


class _Fields:
    def need(self, name: str) -> Tensor:
        """The field `name`; ValueError if it was not given."""
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"{name} is needed here, but was not given")
        return value


@dataclass(frozen=True)
class VisualTokens(_Fields):
    """Dense visual tokens of B visual inputs that share one grid.

    features: (B, N, D) floating point, in raster order (frame, row, column).
    grid: (T, H, W) with N == T * H * W. Tokens that lie in no plane are (1, 1, N).
    keys: (B, N, Dk) keys of the scoring layer, averaged over heads, for similarity.
    saliency: (B, N) attention that a token receives in the scoring layer.
    text_query: (B, Q, D) text embeddings of the question in the space of `features`; Q may be 0.
    text_query_mask: (B, Q) bool, True at real tokens; default: all are real. An input without a
        real token has no text, as if `text_query` were not given.
    pre_projector: (B, N, Dt) features before the projector, for methods that run after it.
    shallow_saliency: (B, N) saliency of a shallow layer (VScan).
    attention: attention between the tokens in the scoring layer, averaged over heads, rows attend
        to columns (DUET's paper): (B, N, N), or for a video (B, T, H * W, H * W), frame by frame.
    size: (B, N) int64, dense tokens already merged in each, default one.

    Raises ValueError or TypeError, naming the field, if a shape, type or device does not fit.
    """

    features: Tensor
    grid: Grid
    keys: Tensor | None = None
    saliency: Tensor | None = None
    text_query: Tensor | None = None
    text_query_mask: Tensor | None = None
    pre_projector: Tensor | None = None
    shallow_saliency: Tensor | None = None
    attention: Tensor | None = None
    size: Tensor | None = None

    def __post_init__(self) -> None:
        _expect("features", self.features, (None, None, None))
        if not self.features.is_floating_point():
            raise TypeError(f"features must be floating point, got {self.features.dtype}")
        b, n, d = self.features.shape
        if n == 0:
            raise ValueError("features has no tokens (N = 0); at least one is needed")
        if len(self.grid) != 3 or min(self.grid) < 1:
            raise ValueError(f"grid must be (T, H, W), all at least 1, got {self.grid}")
        t, h, w = self.grid
        if t * h * w != n:
            raise ValueError(f"grid {t} x {h} x {w} = {t * h * w} tokens, but features has {n}")
        _expect("keys", self.keys, (b, n, None))
        _expect("saliency", self.saliency, (b, n))
        _expect("text_query", self.text_query, (b, None, d))
        _expect("text_query_mask", self.text_query_mask, (b, None))
        if self.text_query_mask is not None:
            if self.text_query is None or self.text_query.shape[1] != self.text_query_mask.shape[1]:
                raise ValueError(
                    f"text_query_mask {tuple(self.text_query_mask.shape)} has no query to match"
                )
            if self.text_query_mask.dtype != torch.bool:
                raise TypeError(f"text_query_mask must be bool, got {self.text_query_mask.dtype}")
        _expect("pre_projector", self.pre_projector, (b, n, None))
        _expect("shallow_saliency", self.shallow_saliency, (b, n))
        by_frame = isinstance(self.attention, Tensor) and self.attention.dim() == 4
        _expect("attention", self.attention, (b, t, h * w, h * w) if by_frame else (b, n, n))
        _expect("size", self.size, (b, n))
        for name, value in self._given().items():
            if value.device != self.features.device:
                raise ValueError(
                    f"{name} is on {value.device}, but features is on {self.features.device}"
                )

    def _given(self) -> dict[str, Tensor]:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in given.items() if isinstance(value, Tensor)}

    @property
    def count(self) -> int:
        """N, the number of tokens of an input."""
        return self.features.shape[1]

    @property
    def grid_cells(self) -> Tensor:
        """(N, 3) int64: place (t, h, w) of each token in the grid."""
        axes = [torch.arange(n, device=self.features.device) for n in self.grid]
        return torch.cartesian_prod(*axes)

    def finite_sums(self) -> Tensor:
        """Sums of the floating-point fields given, float64, on their device: no host sync.

        A field with NaN or infinity has a sum that is not finite (one that overflows may have,
        too). Whoever has many inputs concatenates these, reads them once, and calls `check_finite`
        of those that have one, which raises the error.
        """
        return _sums(self._given())

    def check_finite(self) -> None:
        """Raise ValueError naming the first field with NaN or infinity (one host sync)."""
        require_finite(self._given())

    def batch(self, part: slice) -> VisualTokens:
        """Some inputs of the batch."""
        parts: dict[str, Any] = {name: x[part] for name, x in self._given().items()}
        return replace(self, **parts)

    def fold(self, starts: list[int] | Tensor, grid: Grid) -> VisualTokens:
        """Runs of prod(grid) tokens from each of k starts, as inputs of their own: (B * k, ...).

        starts: (k,) first tokens. grid: of each run. Raises ValueError if `attention` is given
        frame by frame and a run is not one of whole frames.
        """
        size = math.prod(grid)
        first = torch.as_tensor(starts, device=self.features.device)
        index = first[:, None] + torch.arange(size, device=first.device)
        part = {
            name: value[:, index].flatten(0, 1)
            for name in _PER_TOKEN
            if (value := getattr(self, name)) is not None
        }
        if self.attention is not None:
            part["attention"] = self._fold_attention(index, grid)
        for name in ("text_query", "text_query_mask"):
            if (value := getattr(self, name)) is not None:
                part[name] = value.repeat_interleave(len(first), 0)
        return replace(self, grid=grid, **part)

    def _fold_attention(self, index: Tensor, grid: Grid) -> Tensor:
        attention = self.need("attention")
        if attention.dim() == 3:
            return attention[:, index[:, :, None], index[:, None, :]].flatten(0, 1)
        if grid[1:] != self.grid[1:]:
            raise ValueError(
                f"attention is given frame by frame, {self.grid[1]} x {self.grid[2]} tokens each; "
                f"it has no part for {grid[1]} x {grid[2]} of them"
            )
        frames = index[:, :: grid[1] * grid[2]] // (grid[1] * grid[2])
        blocks = attention[:, frames].flatten(0, 1)
        return blocks[:, 0] if grid[0] == 1 else blocks


@dataclass(frozen=True)
class LayerTokens(_Fields):
    """Visual tokens about to enter a decoder layer, n of them in each of B sequences.

    hidden: (B, n, D) hidden states that enter the layer.
    size: (B, n) int64, dense tokens already merged in each.
    anchor: (B, n) int64, the dense token that each stands for (its raster index in `grid`).
    grid: the dense (T, H, W).
    scores: (B, n) float32, text-to-vision attention (see `compress.methods.base`).
    keys: (B, n, Dk) keys with rotary embedding, key heads concatenated.
    text, text_keys: (B, Q, D) hidden states and (B, Q, Dk) keys of the text tokens after the visual
        input; Q may be 0.
    text_mask: (B, Q) bool, True at real tokens.

    Raises ValueError or TypeError, naming the field, if a shape does not fit.
    """

    hidden: Tensor
    size: Tensor
    anchor: Tensor
    grid: Grid
    scores: Tensor | None = None
    keys: Tensor | None = None
    text: Tensor | None = None
    text_keys: Tensor | None = None
    text_mask: Tensor | None = None

    def __post_init__(self) -> None:
        _expect("hidden", self.hidden, (None, None, None))
        b, n, _ = self.hidden.shape
        for name in ("size", "anchor", "scores"):
            _expect(name, getattr(self, name), (b, n))
        _expect("keys", self.keys, (b, n, None))
        _expect("text", self.text, (b, None, None))
        _expect("text_keys", self.text_keys, (b, None, None))
        _expect("text_mask", self.text_mask, (b, None))


@dataclass(frozen=True)
class Reduction:
    """N tokens of each input reduced to M rows.

    features: (B, M, D).
    assign: (B, N) int64, the row that a token was kept as or merged into, -1 if it was dropped.
    anchor: (B, M) int64, the token that a row stands for. Anchors ascend, unless the method says
        otherwise (`Method.ordered`, `Method.repeats_anchors`).
    size: (B, M) int64, dense tokens merged in a row.
    more: further maps like `assign`, for a method that puts a token into several rows: the coarser
        levels of Chat-UniVi. A token then counts once a level in `size`.
    """

    features: Tensor
    assign: Tensor
    anchor: Tensor
    size: Tensor
    more: tuple[Tensor, ...] = ()

    @property
    def count(self) -> int:
        """M, the number of output rows."""
        return self.features.shape[1]

    @classmethod
    def identity(cls, features: Tensor, size: Tensor | None = None) -> Reduction:
        """Every token kept, features unchanged. size: (B, N), default one each."""
        b, n, _ = features.shape
        index = torch.arange(n, device=features.device).expand(b, n)
        return cls(features, index, index, torch.ones_like(index) if size is None else size)

    def members(self, row: int, batch: int = 0) -> Tensor:
        """Input tokens merged in `row` of sample `batch`, ascending int64."""
        levels = torch.stack([self.assign[batch], *(level[batch] for level in self.more)])
        return (levels == row).any(0).nonzero().flatten()

    def unmerge(self, x: Tensor | None = None) -> Tensor:
        """(B, M, ...) -> (B, N, ...): each token gets its row's value, a dropped one zeros.

        x: values of the rows; default the reduced features.
        """
        x = self.features if x is None else x
        if x.shape[:2] != self.anchor.shape:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected {tuple(self.anchor.shape)}")
        extra = (1,) * (x.dim() - 2)
        index = self.assign.clamp(min=0).reshape(*self.assign.shape, *extra)
        out = x.gather(1, index.expand(*self.assign.shape, *x.shape[2:]))
        return out.masked_fill((self.assign < 0).reshape(*self.assign.shape, *extra), 0)

    def sample(self, batch: int) -> Reduction:
        """The reduction of sample `batch` alone, B = 1."""
        if not 0 <= batch < len(self.anchor):
            raise IndexError(f"batch is {batch}, but the reduction has {len(self.anchor)} samples")
        cut = slice(batch, batch + 1)
        more = tuple(level[cut] for level in self.more)
        return Reduction(
            self.features[cut], self.assign[cut], self.anchor[cut], self.size[cut], more
        )

    def by_anchor(self) -> Reduction:
        """The same with rows in ascending order of their anchors."""
        order = self.anchor.argsort(dim=1, stable=True)
        new = order.argsort(dim=1)
        assign, *more = (
            torch.where(old < 0, old, new.gather(1, old.clamp(min=0)))
            for old in (self.assign, *self.more)
        )
        index = order[..., None].expand(-1, -1, self.features.shape[2])
        return Reduction(
            self.features.gather(1, index),
            assign,
            self.anchor.gather(1, order),
            self.size.gather(1, order),
            tuple(more),
        )

    def then(self, later: Reduction) -> Reduction:
        """This reduction followed by `later`, which took this one's rows as its tokens.

        `later.size` must count dense tokens, which it does if the method was given this one's
        sizes. Raises ValueError if `later` does not have this one's rows as its tokens.
        """
        if later.assign.shape != self.anchor.shape:
            raise ValueError(
                f"later reduces {tuple(later.assign.shape)} tokens, but this reduction has "
                f"{tuple(self.anchor.shape)} rows"
            )
        assign, *more = (
            torch.where(old < 0, old, new.gather(1, old.clamp(min=0)))
            for new in (later.assign, *later.more)
            for old in (self.assign, *self.more)
        )
        anchor = self.anchor.gather(1, later.anchor)
        return Reduction(later.features, assign, anchor, later.size, tuple(more))

    def validate(self, size: Tensor | None = None) -> Reduction:
        """Raise ValueError unless the parts agree; return self. Waits for a GPU: meant for tests.

        size: (B, N) dense tokens in each token, default one each.
        """
        b, m = self.anchor.shape
        if self.features.shape[:2] != (b, m) or self.size.shape != (b, m):
            raise ValueError("features, anchor and size disagree on (B, M)")
        weights = torch.ones_like(self.assign) if size is None else size
        row = torch.arange(m, device=self.anchor.device).expand(b, m)
        total, own = torch.zeros_like(self.size), torch.zeros_like(row, dtype=torch.bool)
        for level in (self.assign, *self.more):
            if bool((level >= m).any()) or bool((level < -1).any()):
                raise ValueError(f"assign must lie in -1..{m - 1}")
            total += weights.new_zeros(b, m + 1).scatter_add_(1, level + 1, weights)[:, 1:]
            own |= level.gather(1, self.anchor) == row
        if not bool(own.all()):
            raise ValueError("every row's anchor must be assigned to that row")
        if not torch.equal(total, self.size):
            raise ValueError("size does not count the tokens assigned to each row")
        return self
