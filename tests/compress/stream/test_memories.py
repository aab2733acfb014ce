"""Which tokens each memory policy keeps."""

from __future__ import annotations

import pytest
import torch

from compress import StreamError, get_method
from compress.stream.memories import MEMORIES, Change, Coverage, Older, Reduced, Scored, get_memory
from compress.stream.memories.change import otsu


def older(steps: int = 6, cells: int = 4, **more: object) -> Older:
    draw = torch.Generator().manual_seed(0)
    count = steps * cells
    fields = {
        "features": torch.randn(count, 8, generator=draw),
        "saliency": torch.rand(count, generator=draw),
        "change": torch.rand(count, generator=draw),
    }
    attention = torch.rand(count, generator=draw)
    given = {"fields": fields, "attention": lambda: attention} | more
    return Older(
        torch.arange(steps).repeat_interleave(cells),
        torch.arange(cells).repeat(steps),
        torch.rand(count, generator=draw, dtype=torch.float64),
        (2, cells // 2),
        steps + 2,
        **given,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("name", [*MEMORIES, "divprune"])
def test_sorted_distinct_and_within_the_count(name: str) -> None:
    given = older()
    for count in (1, 7, 23):
        kept = get_memory(name).keep(given, count)
        assert len(kept) <= count
        assert bool((kept.diff() > 0).all())
        if name not in ("recent", "uniform"):
            assert len(kept) == count
        assert torch.equal(kept, get_memory(name).keep(older(), count))


def test_uniform_keeps_the_first_and_even_gaps() -> None:
    kept = get_memory("uniform").keep(older(steps=8), 16)
    steps = older(steps=8).step[kept].unique().tolist()
    assert len(steps) == 4
    assert steps[0] == 0
    gaps = torch.tensor([*steps, 10]).diff()
    assert int(gaps.max()) <= 2 * int(gaps.min()) + 1


def test_change_prefers_what_is_new() -> None:
    change = torch.full((24,), 0.02)
    change[[3, 9, 17]] = torch.tensor([0.5, 0.9, 0.7])
    kept = Change().keep(older(fields={"change": change}), 3)
    assert kept.tolist() == [3, 9, 17]
    assert 0.1 < float(otsu(torch.tensor([0.05, 0.1, 0.08, 0.9, 1.1]))) <= 0.9
    assert float(otsu(torch.full((5,), 0.3))) == 0


def test_scored_by_layer() -> None:
    attention = torch.zeros(24)
    attention[2] = 1
    policy = Scored(decay=1.0)
    assert policy.groups(10) == [0, *[1] * 6, *[2] * 3]
    assert policy.groups(2) == [0, 0]
    given = {"attention": lambda: attention, "groups": 3}
    assert policy.keep(older(group=0, **given), 2).tolist() == [20, 21]  # the newest
    assert 2 in policy.keep(older(group=2, **given), 2)
    assert policy.keep(older(group=1, **given), 2).tolist() == [2, 20]


def test_coverage_reads_time_and_place() -> None:
    """Of tokens that look alike, those far apart in time are kept."""
    alike = older(fields={"features": torch.ones(24, 8)})
    kept = [Coverage(distinct=0, place=None, time=time).keep(alike, 3) for time in (2.0, None)]
    assert [alike.step[index].tolist() for index in kept] == [[0, 2, 4], [0, 0, 0]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Change(same=2), r"Change: same is 2; expected a cosine"),
        (lambda: Scored(shallow=0.6, deep=0.5), r"Scored: shallow, deep is \(0.6, 0.5\)"),
        (lambda: Coverage(time=0), r"Coverage: time is 0; expected a positive number"),
        (lambda: Reduced(get_method("fastv")), r"Reduced: method is FastV"),
        (lambda: get_memory("all"), r"memory is 'all'; known: recent"),
    ],
)
def test_bad_options(make: object, message: str) -> None:
    with pytest.raises(StreamError, match=message):
        make()  # type: ignore[operator]
