"""Every method against its slow reference, and the contracts that all share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from compress.budget import Allocation, Schedule, resolve_budget, stage_layers
from compress.methods import (
    DART,
    Cascade,
    CDPruner,
    ChatUniVi,
    DivPrune,
    Duet,
    FastV,
    FastVID,
    MMTok,
    PruMerge,
    PyramidDrop,
    SparseVLM,
    ToMe,
    VCast,
    VidCom2,
    VisionZip,
    VisPruner,
    VScan,
    get_method,
    list_methods,
)
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


def references():
    """(id, method, grid, keep, reference of one sample's arrays)."""
    image, video = (1, 6, 6), (6, 2, 3)
    return [
        ("visionzip", VisionZip(), image, 16,
         lambda v: golden.visionzip(v["features"], v["keys"], v["saliency"], 16)),
        ("visionzip-few", VisionZip(), image, 2,
         lambda v: golden.visionzip(v["features"], v["keys"], v["saliency"], 2)),
        ("visionzip-released", VisionZip(merge="add", order="rank"), image, 16,
         lambda v: golden.visionzip(v["features"], v["keys"], v["saliency"], 16, True)),
        ("divprune", DivPrune(), image, 9, lambda v: golden.divprune(v["features"], 9)),
        ("cdpruner", CDPruner(), image, 7, lambda v: golden.cdpruner(v["features"], v["query"], 7)),
        ("cdpruner-negate", CDPruner(negate=True), image, 7,
         lambda v: golden.cdpruner(v["features"], v["query"], 7, True)),
        ("mmtok", MMTok(), image, 9,
         lambda v: golden.mmtok(v["features"], v["tower"], v["query"], 9)),
        ("vispruner", VisPruner(step=3), image, 11,
         lambda v: golden.vispruner(v["features"], v["saliency"], 11, 3)),
        ("prumerge", PruMerge(), image, 9,
         lambda v: golden.prumerge(v["features"], v["keys"], v["saliency"], 9)),
        ("prumerge-released", PruMerge(merge="released", neighbours=5), image, 9,
         lambda v: golden.prumerge(v["features"], v["keys"], v["saliency"], 9, True)),
        ("tome", ToMe(), image, 14, lambda v: golden.tome(v["features"], v["keys"], 14)),
        ("tome-rounds", ToMe(), image, 3, lambda v: golden.tome(v["features"], v["keys"], 3)),
        ("vscan", VScan(window=2), image, 22,
         lambda v: golden.vscan(v["features"], v["saliency"], v["shallow"], image, 22, 2)),
        ("vcast", VCast(), video, 13, lambda v: golden.vcast(v["features"], video, 13)),
        ("vcast-few", VCast(), video, 4, lambda v: golden.vcast(v["features"], video, 4)),
        ("vidcom2", VidCom2(heat=0.5), video, 13,
         lambda v: golden.vidcom2(v["features"], video, 13, 0.5)),
        ("fastvid", FastVID(cuts=1, threshold=-0.2, every=2), video, 20,
         lambda v: golden.fastvid(v["features"], v["saliency"], video, 20, 1, -0.2, 2)),
        ("fastvid-released", FastVID(cuts=2, threshold=-1, every=4, merge="released"), video, 15,
         lambda v: golden.fastvid(v["features"], v["saliency"], video, 15, 2, -1, 4, True)),
        ("cascade", Cascade(), image, 9, lambda v: golden.cascade(v["features"], 9)),
        ("cascade-few", Cascade(), image, 2, lambda v: golden.cascade(v["features"], 2)),
        ("chatunivi", ChatUniVi(), image, 14, lambda v: golden.chatunivi(v["features"], 14)),
        ("chatunivi-one-scale", ChatUniVi(), image, 3,
         lambda v: golden.chatunivi(v["features"], 3)),
        ("chatunivi-video", ChatUniVi(events=0.5), (6, 3, 3), 21,
         lambda v: golden.chatunivi_video(v["features"], 6, 3, 7)),
    ]  # fmt: skip


@pytest.mark.parametrize("case", references(), ids=lambda case: case[0])
@pytest.mark.parametrize("seed", [0, 1])
def test_against_reference(case, seed):
    _, method, grid, keep, reference = case
    tokens = inputs(grid=grid, seed=seed)
    reduction = method.reduce(tokens, keep)
    for b in range(2):
        check(reduction, b, reference(sample(tokens, b)))


def layer_tokens(n=20, d=8, seed=0, q=5, sizes=True):
    g = torch.Generator().manual_seed(seed)
    size = torch.randint(1, 4, (2, n), generator=g) if sizes else torch.ones(2, n).long()
    return LayerTokens(
        torch.randn(2, n, d, generator=g),
        size,
        torch.arange(0, 2 * n, 2).expand(2, n),
        (1, 5, 8),
        scores=torch.rand(2, n, generator=g),
        keys=torch.randn(2, n, 6, generator=g),
        text=torch.randn(2, q, d, generator=g),
        text_keys=torch.randn(2, q, 6, generator=g),
        text_mask=torch.ones(2, q, dtype=torch.bool),
    )


def check_inside(reduction, b, expected, size):
    rows, features = expected
    assert reduction.anchor[b].tolist() == [a for a, _ in rows]
    assert [reduction.members(i, b).tolist() for i in range(len(rows))] == [m for _, m in rows]
    np.testing.assert_allclose(reduction.features[b].double().numpy(), features, atol=1e-6, rtol=0)
    reduction.validate(size)


@pytest.mark.parametrize("count", [3, 7, 12])
def test_rules_inside_the_language_model(count):
    t = layer_tokens()
    hidden, size = t.hidden.double().numpy(), t.size.numpy()
    for b in range(2):
        scores = t.scores[b].numpy()
        top = golden.dropped(hidden[b], golden.best_first(scores)[:count])
        for method in (FastV(), PyramidDrop(), VScan(), Duet()):
            check_inside(method.inside(t, count), b, top, t.size)
        check_inside(
            SparseVLM().inside(t, count), b,
            golden.sparsevlm(hidden[b], scores, size[b], count), t.size,
        )  # fmt: skip
        check_inside(
            DART().inside(t, count), b,
            golden.dart(hidden[b], t.keys[b].numpy(), t.text[b].double().numpy(),
                        t.text_keys[b].numpy(), count), t.size,
        )  # fmt: skip
        check_inside(
            Cascade().inside(t, count), b,
            golden.cascade(hidden[b], count, size=size[b]), t.size,
        )  # fmt: skip


def test_sparsevlm_recycles_as_published():
    # 576 -> 300 kept: 276 dropped, int(82.8) + 1 = 83 recycled into 83 // 10 + 1 = 9
    assert SparseVLM().clusters(276) == 9
    assert SparseVLM(recycle=0).clusters(276) == 0
    state = layer_tokens(n=200)
    out = SparseVLM().inside(state, 60).validate(state.size)
    kept = (out.size == state.size.gather(1, out.anchor)).sum(1)
    assert out.count == 60
    assert (kept >= 55).all()


def test_dart_with_little_text():
    t = layer_tokens(q=6)
    mask = torch.tensor([[True, True, False, False, False, False], [True] * 6])
    both = DART().inside(replace(t, text_mask=mask), 12)
    alone = DART().inside(
        LayerTokens(t.hidden[:1], t.size[:1], t.anchor[:1], t.grid, keys=t.keys[:1],
                    text=t.text[:1, :2], text_keys=t.text_keys[:1, :2], text_mask=mask[:1, :2]),
        12,
    )  # fmt: skip
    assert torch.equal(both.anchor[:1], alone.anchor)


def test_cascade_keeps_true_unions():
    tokens = inputs(grid=(3, 4, 4), d=8)
    method = Cascade(layers=(1, 2))
    first = method.reduce(tokens, 20).validate()
    total = first
    for count in (11, 5):
        state = LayerTokens(total.features, total.size, total.anchor, tokens.grid)
        later = method.inside(state, count).validate(total.size)
        total = total.then(later).validate()
        assert total.count == count
        assert (total.anchor.diff(dim=1) > 0).all()
        for b in range(2):
            for row in range(count):
                cells = total.members(row, b)
                assert len({int(c) // 16 for c in cells}) == 1  # a frame's clusters stay in it
                torch.testing.assert_close(
                    total.features[b, row], tokens.features[b, cells].mean(0)
                )


def test_cascade_schedule():
    method = Cascade(before=False)
    published = method._stages(6000, 36, 0.45)
    assert [layer for layer, _ in published.stages] == [11, 23, 35]
    average = Allocation(6000, 36, 6000, published).average
    assert average / 6000 == pytest.approx(0.526, abs=5e-4)
    assert method.allocate(6000, 36, 0.3).keep == 6000
    assert method.allocate(6000, 36, 0.5).average == pytest.approx(3000, abs=2)
    with pytest.raises(ValueError, match="before and deep"):
        Cascade(before=False, deep=False)


def test_cascade_refuses_unequal_frames():
    anchor = torch.tensor([[0, 1, 4], [0, 4, 5]])
    state = LayerTokens(torch.randn(2, 3, 4), torch.ones(2, 3).long(), anchor, (2, 2, 2))
    with pytest.raises(ValueError, match="per frame"):
        Cascade().inside(state, 2)


def test_published_fastv_and_pyramiddrop():
    fastv = [FastV().allocate(576, 32, b).schedule.stages for b in (192, 128, 64)]
    assert fastv == [((2, 166),), ((2, 98),), ((2, 30),)]
    pyramid = PyramidDrop().published(576, 32)
    assert pyramid.schedule.stages == ((8, 288), (16, 144), (24, 72))
    assert pyramid.average == 270
    vscan = VScan().allocate(576, 32, 64)
    assert (vscan.keep, vscan.schedule.stages) == (96, ((16, 32),))


def test_pool_worked_by_hand():
    x = torch.arange(16.0).reshape(1, 16, 1)
    out = reduce(x, "pool", 4, grid=(4, 4)).validate()
    assert out.features.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert out.anchor.tolist() == [[0, 2, 8, 10]]
    even = reduce(torch.randn(1, 576, 2), "pool", 64, grid=(24, 24))
    assert even.size.unique().tolist() == [9]
    video = reduce(torch.randn(1, 48, 2), "pool", 12, grid=(3, 4, 4)).validate()
    assert (video.anchor[0] // 16).bincount().tolist() == [4, 4, 4]


def test_uniform_worked_by_hand():
    assert reduce(torch.randn(1, 9, 2), "uniform", 3).anchor.tolist() == [[1, 4, 7]]


def test_random_draws():
    x = torch.randn(2, 30, 2)
    same = [reduce(x, "random", 5).anchor for _ in range(2)]
    assert torch.equal(*same)
    assert torch.equal(reduce(x[1:], "random", 5).anchor, same[0][1:])
    a, b = (reduce(x, "random", 5, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    assert not torch.equal(a.anchor, b.anchor)
    assert not torch.equal(a.anchor[0], a.anchor[1])


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
