"""Position policies of streams: when tokens move, and where to."""

from __future__ import annotations

import pytest
import torch

from positions import PositionError, rerotate, stream_positions
from positions.channels import ChannelTable
from positions.held import Held, aligned
from positions.policies import POLICIES, Eager, Increment, Infinite, Interpolated, Lazy
from tests.positions.test_held import video


def test_by_name() -> None:
    for name, policy in POLICIES.items():
        assert stream_positions(name) == policy()
    with pytest.raises(PositionError, match="positions is 'true'; known policies for streams: or"):
        stream_positions("true")


def test_original_and_grouped_never_move() -> None:
    cut = video([0, 3, 9])
    for name in ("original", "grouped", "v2pe"):
        assert stream_positions(name).after_eviction([cut], 30.0, 4096) is None
    assert stream_positions("original").question_at(30.0, 3.0) == 30.0
    assert stream_positions("grouped").question_at(30.0, 3.0) == 3.0
    assert Increment(0.5).increment == 0.5


def test_eager_moves_once_enough_is_saved() -> None:
    cut = video([0, 2, 5])  # compact saves six positions
    placed = Eager().after_eviction([cut], 14.0, 4096)
    assert placed is not None
    assert torch.equal(placed[0], aligned([cut])[0])
    assert Eager(every=7).after_eviction([cut], 14.0, 4096) is None
    assert Eager(every=6).after_eviction([cut], 14.0, 4096) is not None
    assert Eager().after_eviction([cut.moved(placed[0])], 8.0, 4096) is None


def test_lazy_moves_at_the_limit() -> None:
    cut = video([0, 2, 5])
    assert Lazy(margin=100).after_eviction([cut], 156.0, 256) is None
    assert Lazy(margin=100).after_eviction([cut], 157.0, 256) is not None
    assert Lazy(limit=12).after_eviction([cut], 13.0, 4096) is not None


def test_infinite_caps_the_distance_on_the_time_axis() -> None:
    cut = video([0, 40, 45])
    (now,) = Infinite(limit=20).at_forward([cut], 14.0)
    newest = float(cut.home[-1, 0])
    assert float((newest - now[:, 0]).max()) == 20
    assert torch.equal(now[:, 1:], cut.home[:, 1:])
    assert torch.equal(now[5:], cut.home[5:])
    flat = Held(cut.step, cut.home[:, :1].expand(-1, 3), cut.home, cut.advance, False, True)
    (now,) = Infinite(limit=20).at_forward([flat], newest + 1)
    assert torch.equal(now, flat.home.clamp(min=newest + 1 - 20))
    with pytest.raises(PositionError, match="limit=0"):
        Infinite(limit=0)


def test_interpolation_draws_time_together_and_nothing_else() -> None:
    cut = video([0, 3, 9, 12])  # without gaps: 3, 5, 7, 9
    (now,) = Interpolated(span=3).at_forward([cut], 40.0)
    assert now[3::2, 0].tolist() == [3, 4, 5, 6]
    assert torch.equal(now[:, 1:], cut.home[:, 1:])
    assert torch.equal(now[:3], cut.home[:3])
    assert torch.equal(Interpolated(span=6).at_forward([cut], 40.0)[0], aligned([cut])[0])
    other = video([3, 9, 12])  # groups of layers meet at the newest token
    both = Interpolated(span=3).at_forward([cut, other], 40.0)
    assert torch.equal(both[0][-1], both[1][-1])
    flat = Held(cut.step, cut.home[:, :1].expand(-1, 3), cut.home, cut.advance, False, True)
    (now,) = Interpolated(span=1.75).at_forward([flat], 40.0)
    assert float(now[-1, 0] - now[3, 0]) == pytest.approx(1.75)
    with pytest.raises(PositionError, match=r"span=0\): expected a positive number"):
        Interpolated(span=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drift_of_an_eager_stream_is_bounded(dtype: torch.dtype) -> None:
    """Keys that were moved at each of 200 evictions, beside keys rotated once."""
    channels = ChannelTable.chunked([4, 6, 6])
    inv_freq = 1e4 ** -(torch.arange(16) / 16)
    draw = torch.Generator().manual_seed(0)
    raw = torch.randn(1, 1, 8, 32, generator=draw, dtype=torch.float64)
    home = torch.full((8, 1, 3), 5000.0, dtype=torch.float64)
    zero = torch.zeros_like(home)
    keys = rerotate(raw.to(dtype), zero, home, inv_freq, channels)
    for number in range(200):
        old = home - number * torch.tensor([1.0, 0, 0])
        keys = rerotate(keys, old, old - torch.tensor([1.0, 0, 0]), inv_freq, channels)
    once = rerotate(raw, zero, home - torch.tensor([200.0, 0, 0]), inv_freq, channels)
    error = float((keys.double() - once.double()).abs().max())
    assert error < (1e-4 if dtype == torch.float32 else 0.5)
    if dtype == torch.bfloat16:
        direct = rerotate(
            raw.to(dtype), zero, home - torch.tensor([200.0, 0, 0]), inv_freq, channels
        )
        assert float((direct.double() - once.double()).abs().max()) < error / 4
