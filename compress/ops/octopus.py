"""A codec for keys and values after OCTOPUS: random rotation, triplets on an octahedron, Lloyd-Max.

A vector is rotated by a random orthogonal matrix, which makes its entries nearly normal whatever it
was. Each triplet of entries is a radius and a direction; the direction is unfolded from an
octahedron onto a square. All three numbers are rounded to the levels that lose least for normal
entries (Lloyd-Max), so the codec reads no data. Written from the published abstract alone: how the
paper spends the bits of a triplet is not known, and `LEVELS` are the best found for normal entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

SAMPLES, ROUNDS = 1 << 15, 30  # of Lloyd's algorithm
LEVELS = {2: (6, 5, 2), 3: (10, 10, 5), 4: (20, 20, 10)}
"""By bits of an entry: levels of both coordinates on the square and of the radius, which are one
number below 2 ** (3 * bits)."""


@dataclass(frozen=True)
class Encoded:
    """codes: (..., bytes) uint8, packed. scale: (...) float16. size: D. dtype: of the input."""

    codes: Tensor
    scale: Tensor
    size: int
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that are stored."""
        return sum(x.numel() * x.element_size() for x in (self.codes, self.scale))


@dataclass(frozen=True)
class Octopus:
    """bits: 2, 3 or 4 for each entry. seed: of the rotation; the same to decode."""

    bits: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.bits not in LEVELS:
            raise ValueError(f"bits is {self.bits!r}: expected one of {tuple(LEVELS)}")

    def encode(self, x: Tensor) -> Encoded:
        """x: (..., D)."""
        size = x.shape[-1]
        turned = x.float() @ _rotation(size, self.seed).to(x.device)
        norm = turned.norm(dim=-1, keepdim=True).clamp(min=1e-20)
        unit = functional.pad(turned / norm * size**0.5, (0, -size % 3))
        triplets, tables = unit.unflatten(-1, (-1, 3)), _tables(self.bits)
        planar = unfold(triplets)
        codes = [_nearest(planar[..., n], tables[n]) for n in (0, 1)]
        # How far the triplet reaches along the direction that was kept.
        along = (triplets * self._direction(codes[0], codes[1])).sum(-1)
        codes.append(_nearest(along, tables[2]))
        near = self._unit(codes, size)
        # The length that brings the rounded direction closest.
        scale = (turned * near).sum(-1) / near.square().sum(-1).clamp(min=1e-20)
        most = torch.finfo(torch.float16).max
        scale = scale.clamp(-most, most).half()
        _, second, third = LEVELS[self.bits]
        joint = (codes[0] * second + codes[1]) * third + codes[2]
        return Encoded(pack(joint, 3 * self.bits), scale, size, x.dtype)

    def decode(self, encoded: Encoded) -> Tensor:
        """(..., D), in the dtype that was encoded."""
        _, second, third = LEVELS[self.bits]
        joint = unpack(encoded.codes, 3 * self.bits, -(-encoded.size // 3))
        codes = [joint // (second * third), joint // third % second, joint % third]
        near = self._unit(codes, encoded.size) * encoded.scale.float()[..., None]
        back = near @ _rotation(encoded.size, self.seed).to(near.device).T
        return back.to(encoded.dtype)

    def _direction(self, first: Tensor, second: Tensor) -> Tensor:
        """(..., T, 3) unit vectors of codes (..., T)."""
        tables = [table.to(first.device) for table in _tables(self.bits)]
        return fold_back(torch.stack([tables[0][first], tables[1][second]], -1))

    def _unit(self, codes: list[Tensor], size: int) -> Tensor:
        """(..., D): what three codes (..., T) stand for, rotated and of length about sqrt(D)."""
        radius = _tables(self.bits)[2].to(codes[2].device)[codes[2]]
        return (self._direction(*codes[:2]) * radius[..., None]).flatten(-2)[..., :size]


def unfold(directions: Tensor) -> Tensor:
    """(..., 2) in [-1, 1]: the octahedral map of (..., 3), which need not be of unit length."""
    x = directions / directions.abs().sum(-1, keepdim=True).clamp(min=1e-20)
    upper, below = x[..., :2], x[..., 2:] < 0
    sign = torch.where(upper < 0, -1.0, 1.0)
    return torch.where(below, (1 - upper.flip(-1).abs()) * sign, upper)


def fold_back(planar: Tensor) -> Tensor:
    """(..., 3) unit vectors of (..., 2) in [-1, 1]; the inverse of `unfold`."""
    z = 1 - planar.abs().sum(-1, keepdim=True)
    sign = torch.where(planar < 0, -1.0, 1.0)
    xy = torch.where(z < 0, (1 - planar.flip(-1).abs()) * sign, planar)
    return functional.normalize(torch.cat([xy, z], -1), dim=-1)


def pack(codes: Tensor, bits: int) -> Tensor:
    """(..., ceil(N bits / 8)) uint8 of codes (..., N), each below 2 ** bits."""
    places = torch.arange(bits, device=codes.device)
    flat = ((codes[..., None] >> places) & 1).flatten(-2)
    flat = functional.pad(flat, (0, -flat.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (flat << torch.arange(8, device=codes.device)).sum(-1).to(torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """(..., count) int64: the inverse of `pack`."""
    flat = (packed.long()[..., None] >> torch.arange(8, device=packed.device)) & 1
    flat = flat.flatten(-2)[..., : count * bits].unflatten(-1, (count, bits))
    return (flat << torch.arange(bits, device=packed.device)).sum(-1)


@cache
def _rotation(size: int, seed: int) -> Tensor:
    """(D, D) orthogonal, float32, uniformly distributed."""
    draw = torch.randn(size, size, generator=torch.Generator().manual_seed(seed)).double()
    orthogonal, triangle = torch.linalg.qr(draw)
    return (orthogonal * triangle.diagonal().sign()).float()


@cache
def _tables(bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Levels of the two coordinates on the square and of the radius, for normal triplets."""
    draw = torch.randn(SAMPLES, 3, generator=torch.Generator().manual_seed(1))
    planar = unfold(draw)[..., 0]
    square = torch.cat([planar, -planar])
    first, second, third = LEVELS[bits]
    return lloyd_max(square, first), lloyd_max(square, second), lloyd_max(draw.norm(dim=-1), third)


def lloyd_max(samples: Tensor, levels: int) -> Tensor:
    """(levels,) ascending: those of least mean squared error for (N,) samples."""
    found = torch.quantile(samples, (torch.arange(levels) + 0.5) / levels)
    for _ in range(ROUNDS):
        own = _nearest(samples, found)
        total = torch.zeros(levels).index_add(0, own, samples)
        found = total / torch.bincount(own, minlength=levels).clamp(min=1)
    return found


def _nearest(values: Tensor, levels: Tensor) -> Tensor:
    """int64: the number of the nearest level of each value."""
    middles = (levels[1:] + levels[:-1]) / 2
    return torch.bucketize(values.contiguous(), middles.to(values.device))
