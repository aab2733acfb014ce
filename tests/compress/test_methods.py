"""Every method against its slow reference, and the contracts that all share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compress.budget import Allocation, Schedule, resolve_budget, stage_layers
from compress.methods import Duet, get_method, list_methods
from compress.reduce import reduce
from compress.tokens import LayerTokens, VisualTokens
from tests.compress import golden


def inputs(b=2, grid=(1, 6, 6), d=8, dk=5, q=4, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    n = grid[0] * grid[1] * grid[2]

    def draw(*shape):
        return torch.randn(*shape, generator=g).to(dtype)

    return VisualTokens(
        draw(b, n, d),
        grid,
        keys=draw(b, n, dk),
        saliency=torch.rand(b, n, generator=g),
        query=draw(b, q, d),
        query_mask=torch.ones(b, q, dtype=torch.bool),
        tower=draw(b, n, d + 3),
        shallow=torch.rand(b, n, generator=g),
        attention=torch.rand(b, n, n, generator=g),
    )


def sample(tokens, b):
    """Fields of sample b as float64 arrays, by name."""
    names = ("features", "keys", "saliency", "query", "tower", "shallow", "attention")
    return {name: getattr(tokens, name)[b].double().numpy() for name in names}


def check(reduction, b, expected):
    """Same anchors, members and features as the reference, in the same order."""
    rows, features = expected
    assert reduction.anchor[b].tolist() == [a for a, _ in rows]
    assert [reduction.members(i, b).tolist() for i in range(len(rows))] == [m for _, m in rows]
    np.testing.assert_allclose(reduction.features[b].double().numpy(), features, atol=1e-6, rtol=0)
    reduction.validate()


# budgets


def test_duet_published_budgets():
    duet = Duet()
    got = {b: duet.allocate(576, 32, b) for b in (192, 128, 64)}
    assert [(a.keep, a.average) for a in got.values()] == [
        (307, 191.75),
        (205, 128.0),
        (102, 63.75),
    ]
    assert [duet.split(a.keep, 576) for a in got.values()] == [(300, 7), (170, 35), (72, 30)]
    assert got[64].schedule.stages == ((16, 51), (24, 0))
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
    allocation = Duet().allocate(dense, 32, budget)
    assert Duet().split(allocation.keep, dense) == split
    assert allocation.average == average


def test_duet_qwen_counts_average():
    # the published counts under the published layers and (0.5, 0) give these, not 640/320/160
    for keep, average in ((1023, 639), (608, 380), (243, 151.75)):
        schedule = Duet().schedule(keep, 28)
        assert Allocation(2000, 28, keep, schedule).average == pytest.approx(average, abs=0.3)
    assert Duet().allocate(2000, 28, 640).average == 640


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 28, 32])
@pytest.mark.parametrize("budget", [1, 16, 0.11, 0.5, 0.7, 0.9, 1.0])
def test_duet_any_model(depth, budget):
    allocation = Duet().allocate(144, depth, budget)
    target = resolve_budget(budget, 144)
    # one token more or less before the language model moves the mean by at most one
    assert abs(allocation.average - target) <= 1
    assert allocation.counts[0] == allocation.keep


def test_keep_all_has_no_schedule():
    for name in list_methods():
        allocation = get_method(name).allocate(144, 4, 144)
        assert (allocation.keep, allocation.schedule.stages) == (144, ())


def test_stage_layers():
    assert stage_layers(32, (0.5, 0.75)) == (16, 24)
    assert stage_layers(4, (0.5, 0.75)) == (2, 3)
    assert stage_layers(2, (0.5, 0.75)) == (1,)
    assert stage_layers(1, (0.5, 0.75)) == ()
    assert stage_layers(36, (11, 23, 35)) == (11, 23, 35)


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
        with pytest.raises(ValueError, match="stages"):
            Schedule(stages)
    with pytest.raises(ValueError, match="query"):
        Schedule(query="first")
    with pytest.raises(ValueError, match="layer 4"):
        Allocation(9, 4, 5, Schedule(((4, 1),)))


# methods against their references


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("cluster", ["pool", "attention", "visionzip"])
@pytest.mark.parametrize(("keep", "contextual"), [(12, 3), (12, 0), (30, 10), (2, 1), (1, 0)])
def test_duet(cluster, released, keep, contextual):
    if contextual == 0 and released:
        pytest.skip("no contextual tokens: nothing to add")
    tokens = inputs()
    method = Duet(
        cluster=cluster,
        contextual=contextual,
        width=3,
        variant="released" if released else "paper",
    )
    reduction = method.reduce(tokens, keep)
    for b in range(2):
        v = sample(tokens, b)
        rows = keep - contextual
        if contextual == 0:
            expected = golden.dropped(v["features"], golden.best_first(v["saliency"])[:rows])
        else:
            expected = golden.duet(
                v["features"], v["keys"], v["saliency"], rows, contextual, 3, cluster, released,
                v["attention"],
            )  # fmt: skip
        check(reduction, b, expected)


def test_duet_ties_go_to_the_lower_index():
    tokens = inputs(b=1)
    flat = VisualTokens(tokens.features, tokens.grid, tokens.keys, torch.ones(1, 36))
    assert Duet(contextual=0).reduce(flat, 5).anchor.tolist() == [[0, 1, 2, 3, 4]]


def test_duet_video_by_frame():
    tokens = inputs(grid=(4, 3, 3))
    whole = Duet(contextual=1).reduce(tokens, 14)
    assert (whole.anchor[0] // 9).bincount().tolist() == [3, 4, 3, 4]
    for t, rows in ((0, slice(0, 3)), (1, slice(3, 7))):
        alone = Duet(contextual=1).reduce(tokens.fold([9 * t], (1, 3, 3)), 3 + t)
        assert torch.equal(whole.features[:, rows], alone.features)
        assert torch.equal(whole.anchor[:, rows], alone.anchor + 9 * t)
    whole.validate()


@pytest.mark.parametrize("option", ["cluster", "merge", "query", "order", "saliency", "variant"])
def test_duet_unknown_option(option):
    with pytest.raises(ValueError, match=option):
        Duet(**{option: "nonsense"})


def test_salient_rows_keep_the_last_real_token():
    text = torch.eye(4)[None]
    visual = torch.tensor([[[9.0, 0, 0, 0]]])
    mask = torch.tensor([[True, True, True, False]])
    assert Duet().salient_rows(text, visual, mask).tolist() == [[True, False, True, False]]
    assert Duet().salient_rows(text[:, :0], visual).shape == (1, 0)


def test_inside_keeps_the_highest_scores_in_order():
    hidden = torch.randn(1, 5, 3)
    size, anchor = torch.tensor([[1, 4, 1, 1, 2]]), torch.tensor([[0, 2, 3, 6, 8]])
    scores = torch.tensor([[0.1, 0.3, 0.3, 0.0, 0.5]])
    state = LayerTokens(hidden, size, anchor, (1, 3, 3), scores)
    out = Duet().inside(state, 2)
    assert out.anchor.tolist() == [[1, 4]]
    assert out.size.tolist() == [[4, 2]]
    assert Duet().inside(state, 0).features.shape == (1, 0, 3)
    assert torch.equal(Duet().inside(state, 5).features, hidden)
    with pytest.raises(ValueError, match="scores"):
        Duet().inside(LayerTokens(hidden, size, anchor, (1, 3, 3)), 2)


# contracts of all methods, by name


def test_reduce_on_bare_tensors():
    x = torch.randn(2, 9, 4)
    out = reduce(x, "random", 0.5)
    assert out.features.shape == (2, 4, 4)
    with pytest.raises(ValueError, match="known methods"):
        reduce(x, "nonsense", 4)
    with pytest.raises(ValueError, match="needs"):
        reduce(x, "duet", 4)
    with pytest.raises(ValueError, match="grid"):
        reduce(x, "random", 4, grid=(3, 4))
    with pytest.raises(TypeError, match="method"):
        reduce(x, 3, 4)
