"""The codec: what packs unpacks, errors near what is known of the best, no dependence on data."""

from __future__ import annotations

import pytest
import torch

from compress.ops.octopus import LEVELS, Octopus, fold_back, lloyd_max, pack, unfold, unpack

# Scalar Lloyd-Max quantisers of normal numbers (Max 1960), of 4, 8 and 16 levels.
SCALAR = {2: 0.1175, 3: 0.03454, 4: 0.009497}


@pytest.mark.parametrize("bits", [6, 9, 12])
def test_what_packs_unpacks(bits: int) -> None:
    draw = torch.Generator().manual_seed(bits)
    codes = torch.randint(2**bits, (3, 11), generator=draw)
    packed = pack(codes, bits)
    assert packed.shape == (3, -(-11 * bits // 8))
    assert torch.equal(unpack(packed, bits, 11), codes)


def test_the_octahedron_folds_back() -> None:
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    unit = x / x.norm(dim=1, keepdim=True)
    planar = unfold(3 * x)
    assert float(planar.abs().max()) <= 1
    torch.testing.assert_close(fold_back(planar), unit, atol=1e-5, rtol=0)
    poles = torch.tensor([[0.0, 0, 1], [0, 0, -1], [1, 0, 0], [0, -1, 0]])
    torch.testing.assert_close(fold_back(unfold(poles)), poles)


def test_lloyd_max_of_normal_numbers() -> None:
    x = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0))
    assert lloyd_max(x, 4).tolist() == pytest.approx([-1.51, -0.4528, 0.4528, 1.51], abs=0.03)


@pytest.mark.parametrize(
    "bits", [bits if bits == 2 else pytest.param(bits, marks=pytest.mark.slow) for bits in LEVELS]
)
def test_its_error_is_near_that_of_a_scalar_quantiser(bits: int) -> None:
    draw = torch.Generator().manual_seed(1)
    normal = torch.randn(2, 300, 96, generator=draw)
    spiky = torch.zeros_like(normal)
    spiky[..., 7], spiky[..., 40] = 30.0, normal[..., 40]
    codec = Octopus(bits)
    for x in (normal, spiky, 1e-3 * normal):  # a rotation makes all alike
        encoded = codec.encode(x)
        error = (codec.decode(encoded) - x).square().sum() / x.square().sum()
        assert float(error) < 1.2 * SCALAR[bits]
        assert encoded.nbytes == x.numel() * bits // 8 + 2 * 600
    half = codec.decode(codec.encode(normal.bfloat16()))
    assert half.dtype == torch.bfloat16
    assert torch.equal(codec.decode(codec.encode(0 * normal)), 0 * normal)


def test_other_bits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bits is 5: expected one of \(2, 3, 4\)"):
        Octopus(5)
