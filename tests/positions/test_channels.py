"""Channel tables: which axis and which slot each rotary channel reads."""

import math

import pytest
import torch

from positions import (
    PPE,
    ChannelTable,
    Compact,
    Image,
    MRoPE,
    PositionError,
    Sequential,
    Text,
    Video,
    plan,
)
from tests.positions.hosts import reduced


def test_channel_tables_of_the_papers():
    chunked = ChannelTable.chunked([16, 24, 24])
    assert chunked.axis.tolist() == [0] * 16 + [1] * 24 + [2] * 24
    slots = chunked.with_slots(8).slot.tolist()
    runs = [k for k in range(8) for _ in range(2)], [k for k in range(8) for _ in range(3)]
    assert slots == [*runs[0], *runs[1], *runs[1]]
    interleaved = ChannelTable.interleaved([24, 20, 20])
    assert interleaved.axis[:61].tolist() == [0, 1, 2] * 20 + [0]
    assert interleaved.axis[60:].tolist() == [0] * 4
    assert interleaved.with_slots(4).slot[interleaved.axis == 1].tolist() == [
        k for k in range(4) for _ in range(5)
    ]
    assert ChannelTable.flat(8).with_slots(4).slot.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    strided = ChannelTable.flat(8).with_slots(4, "strided").slot.tolist()
    assert strided == [0, 1, 2, 3] * 2


@pytest.mark.parametrize("slots", [3, 16, 24, 32])
def test_slots_that_do_not_divide_are_refused(slots):
    """The released fallback (channel c reads row c modulo 3K) would lose an axis."""
    with pytest.raises(PositionError, match=r"sections \[16, 24, 24\]; choose a divisor of 8"):
        ChannelTable.chunked([16, 24, 24]).with_slots(slots)


@pytest.mark.parametrize("layout", ["contiguous", "strided"])
@pytest.mark.parametrize("slots", [1, 2, 4, 8])
def test_every_slot_gets_the_same_share_of_each_axis(slots, layout):
    table = ChannelTable.chunked([16, 24, 24]).with_slots(slots, layout)
    for axis, count in enumerate((16, 24, 24)):
        shares = torch.bincount(table.slot[table.axis == axis], minlength=slots)
        assert shares.tolist() == [count // slots] * slots


def test_angles_channel_by_channel():
    """Against the definition, written out: angle = position[slot(c)][axis(c)] * inv_freq[c]."""
    inv_freq = 1e4 ** -(torch.arange(16) / 16)
    made = plan([Text(2), Video((2, 3, 3))], MRoPE()).after({1: reduced([0] * 18, [4])}, PPE(2))
    angles = ChannelTable.chunked([4, 6, 6]).with_slots(2).angles(made.positions, inv_freq)
    for c in range(16):
        axis, rank, width = (0, c, 4) if c < 4 else (1, c - 4, 6) if c < 10 else (2, c - 10, 6)
        place = float(made.positions[2, rank // (width // 2), axis])
        expected = (place * float(inv_freq[c])) % (2 * math.pi)
        assert float(angles[2, c]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("scheme", [Compact("all"), MRoPE(), Sequential()])
def test_slots_change_nothing_on_axes_that_do_not_vary(scheme):
    """One image has one t, and `Compact("all")` one position: slots hold what K = 1 holds."""
    made = plan([Text(3), Image((2, 3))], scheme)
    reduced_plan = made.after({1: reduced([0] * 6, [2])})
    several = made.after({1: reduced([0] * 6, [2])}, PPE(2))
    channels = ChannelTable.chunked([4, 6, 6])
    inv_freq = 1e4 ** -(torch.arange(16) / 16)
    a = channels.angles(reduced_plan.positions, inv_freq)
    b = channels.with_slots(2).angles(several.positions, inv_freq)
    varies = (made.dense_positions[3:] != made.dense_positions[3]).any(0)[channels.axis]
    assert torch.equal(a[3][~varies], b[3][~varies])
    assert bool((a[3] != b[3])[varies].any()) == bool(varies.any())
