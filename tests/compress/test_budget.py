"""Budgets: the published ones exactly, others approximately."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.budget import Allocation, resolve_budget, schedule_layers
from compress.methods import (
    Cascade,
    Duet,
    FastV,
    PyramidDrop,
    VScan,
    get_method,
    list_methods,
)


def test_duet_published_budgets():
    duet = Duet(variant="released")
    got = {b: duet.allocate(576, 32, b) for b in (192, 128, 64)}
    assert [(a.keep, a.average) for a in got.values()] == [
        (307, 191.75),
        (205, 128.0),
        (102, 63.75),
    ]
    assert [duet.split(a.keep, 576) for a in got.values()] == [(300, 7), (170, 35), (72, 30)]
    assert got[64].schedule == ((16, 51), (24, 0))
    assert got[64].counts == (102,) * 16 + (51,) * 8 + (0,) * 8


@pytest.mark.parametrize(
    ("dense", "budget", "split", "average"),
    [
        (2880, 640, (850, 175), 640.5),
        (2880, 320, (360, 150), 318.75),
        (2880, 160, (225, 30), 159.25),
        (2048, 960, (1280, 256), 960.0),
        (2048, 136, (160, 56), 135.0),
    ],
)
def test_duet_published_tiles_and_video(dense, budget, split, average):
    allocation = Duet(variant="released").allocate(dense, 32, budget)
    assert Duet(variant="released").split(allocation.keep, dense) == split
    assert allocation.average == average


def test_duet_qwen_counts_average():
    # the published counts under the published layers and (0.5, 0) give these, not 640/320/160
    for keep, average in ((1023, 639), (608, 380), (243, 151.75)):
        schedule = Duet(variant="released").schedule(keep, 28)
        assert Allocation(2000, 28, keep, schedule).average == pytest.approx(average, abs=0.3)
    assert Duet(variant="released").allocate(2000, 28, 640).average == 640


def test_of_two_equally_near_the_smaller():
    # 144 tokens, 2 layers: 21 tokens give 15.5, 22 give 16.5
    assert Duet(variant="released").allocate(144, 2, 16).keep == 21
    # away from the published table the solver finds the published counts too
    moved = Duet(variant="released", layers=(16, 24))
    assert [moved.allocate(576, 32, b).keep for b in (192, 128, 64)] == [307, 205, 102]


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 28, 32])
@pytest.mark.parametrize("budget", [1, 16, 0.11, 0.5, 0.7, 0.9, 1.0])
def test_duet_any_model(depth, budget):
    allocation = Duet(variant="released").allocate(144, depth, budget)
    target = resolve_budget(budget, 144)
    # one token more or less before the language model moves the mean by at most one
    assert abs(allocation.average - target) <= 1
    assert allocation.counts[0] == allocation.keep


def test_keep_all_has_no_schedule():
    for name in list_methods():
        allocation = get_method(name).allocate(144, 4, 144)
        assert (allocation.keep, allocation.schedule) == (144, ())


def test_stage_layers():
    assert schedule_layers(32, (0.5, 0.75)) == (16, 24)
    assert schedule_layers(4, (0.5, 0.75)) == (2, 3)
    assert schedule_layers(2, (0.5, 0.75)) == (1,)
    assert schedule_layers(1, (0.5, 0.75)) == ()
    assert schedule_layers(36, (11, 23, 35)) == (11, 23, 35)


@pytest.mark.parametrize("budget", [0, -3, 577, 0.0, 1.5, -0.1, float("nan"), float("inf")])
def test_budget_out_of_range(budget):
    with pytest.raises(ValueError, match="budget is"):
        resolve_budget(budget, 576)


@pytest.mark.parametrize("budget", [True, "64", None])
def test_budget_not_a_number(budget):
    with pytest.raises(TypeError, match="budget"):
        resolve_budget(budget, 576)


def test_bad_schedules():
    for stages in (((0, 3),), ((2, 3), (2, 1)), ((1, 3), (2, 4)), ((1, -1),)):
        with pytest.raises(ValueError, match="schedule"):
            Allocation(9, 5, 9, stages)
    with pytest.raises(ValueError, match="layer 4"):
        Allocation(9, 4, 5, ((4, 1),))


def test_cascade_schedule():
    method = Cascade(pre_llm=False)
    published = method._pairs(6000, 36, 0.45)
    assert [layer for layer, _ in published] == [11, 23, 35]
    average = Allocation(6000, 36, 6000, published).average
    assert average / 6000 == pytest.approx(0.526, abs=5e-4)
    assert method.allocate(6000, 36, 0.3).keep == 6000
    assert method.allocate(6000, 36, 0.5).average == pytest.approx(3000, abs=2)
    with pytest.raises(ValueError, match="pre_llm and in_llm"):
        Cascade(pre_llm=False, in_llm=False)


def test_published_fastv_and_pyramiddrop():
    fastv = [FastV().allocate(576, 32, b).schedule for b in (192, 128, 64)]
    assert fastv == [((2, 166),), ((2, 98),), ((2, 30),)]
    pyramid = PyramidDrop().published(576, 32)
    assert pyramid.schedule == ((8, 288), (16, 144), (24, 72))
    assert pyramid.average == 270
    vscan = VScan().allocate(576, 32, 64)
    assert (vscan.keep, vscan.schedule) == (96, ((16, 32),))


@pytest.mark.parametrize("name", list_methods())
@given(dense=st.integers(1, 700), depth=st.integers(1, 48), share=st.floats(0.01, 1.0))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_budgets_of_any_model(name, dense, depth, share):
    if name == "downsample":
        dense = math.isqrt(dense) ** 2  # images of one square grid
    method = get_method(name)
    allocation = method.allocate(dense, depth, share)
    assert allocation.counts[0] == allocation.keep
    assert len(allocation.counts) == depth
    if method.in_llm_only:
        assert allocation.keep == dense
    # a count changes the mean by little, unless the first full layer alone exceeds the budget
    floor = dense / depth if method.in_llm_only else 1
    slack = 1.5 + (math.sqrt(dense) if name == "downsample" else 0)  # squares alone
    assert abs(allocation.average - max(share * dense, floor)) <= slack
