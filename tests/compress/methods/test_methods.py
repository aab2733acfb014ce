"""Every method against its slow reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from compress.methods import (
    DART,
    MMR,
    Cascade,
    CDPruner,
    ChatUniVi,
    DivPrune,
    Duet,
    FastV,
    FastVID,
    FlashVID,
    Foveate,
    HoloV,
    IDSelection,
    MMTok,
    PruMerge,
    PruneSID,
    PyramidDrop,
    Scope,
    SparseVLM,
    ToMe,
    VCast,
    VidCom2,
    VisionZip,
    VisPruner,
    VScan,
)
from compress.reduce import reduce
from compress.tokens import LayerTokens, VisualTokens
from tests.compress.methods import golden
from tests.compress.methods import golden_clusters as clusters
from tests.compress.methods import golden_video as of_video
from tests.compress.methods.cases import check, check_in_llm, inputs, layer_tokens, sample


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("cluster", ["pool", "attention", "visionzip"])
@pytest.mark.parametrize(("keep", "contextual"), [(12, 3), (12, 0), (30, 10), (2, 1), (1, 0)])
def test_duet(cluster, released, keep, contextual):
    variant = "released" if released else "paper"
    method = Duet(variant=variant, cluster=cluster, contextual=contextual, width=3)
    check_duet(method, cluster, released, keep, contextual)


def check_duet(method, cluster, released, keep, contextual):
    tokens = inputs()
    lacking = {name: None for name in ("keys", "attention") if name not in method.needs}
    reduction = method.reduce(replace(tokens, **lacking), keep)
    for b in range(2):
        v = sample(tokens, b)
        rows = keep - contextual
        if contextual == 0:
            ranked = golden.best_first(v["saliency"])
            expected = golden.dropped(v["features"], ranked[:rows], raster=True)
        else:
            expected = golden.duet(
                v["features"], v["keys"], v["saliency"], rows, contextual, method.width, cluster,
                released, v["attention"],
            )  # fmt: skip
        check(reduction, b, expected)


def test_duet_as_the_paper_says():
    method = Duet(variant="paper", contextual=5)
    check_duet(method, "attention", False, 14, 5)
    assert method.needs == {"saliency", "attention"}
    assert (method.saliency_rule, method.scoring_layer) == ("received", -1)
    assert (method.query_rows, method.scored_by, method.ordered) == ("last", "next", True)


@pytest.mark.parametrize("options", [{}, {"variant": "released"}])
def test_duet_as_the_released_code_does(options):
    method = Duet(contextual=5, **options)
    check_duet(method, "pool", True, 14, 5)
    assert method.needs == {"saliency", "keys"}
    assert (method.saliency_rule, method.scoring_layer) == ("auto", None)
    assert (method.query_rows, method.scored_by, method.ordered) == ("all", "next", False)


def test_duet_options_override_the_variant():
    method = Duet(variant="paper", cluster="pool", query="salient")
    assert method.needs == {"saliency", "keys"}
    assert (method.query, method.merge, method.order) == ("salient", "mean", "raster")


def test_duet_video_with_attention_by_frame():
    tokens = inputs(grid=(3, 2, 4))
    frames = torch.stack([tokens.attention[:, i : i + 8, i : i + 8] for i in (0, 8, 16)], 1)
    method = Duet(variant="paper", contextual=2)
    whole = method.reduce(tokens, 13)
    parts = method.reduce(replace(tokens, attention=frames), 13)
    assert torch.equal(whole.assign, parts.assign)
    assert torch.equal(whole.features, parts.features)


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


def test_in_llm_keeps_the_highest_scores_in_order():
    hidden = torch.randn(1, 5, 3)
    size, anchor = torch.tensor([[1, 4, 1, 1, 2]]), torch.tensor([[0, 2, 3, 6, 8]])
    scores = torch.tensor([[0.1, 0.3, 0.3, 0.0, 0.5]])
    state = LayerTokens(hidden, size, anchor, (1, 3, 3), scores)
    out = Duet().reduce_in_llm(state, 2)
    assert out.anchor.tolist() == [[1, 4]]
    assert out.size.tolist() == [[4, 2]]
    assert Duet().reduce_in_llm(state, 0).features.shape == (1, 0, 3)
    assert torch.equal(Duet().reduce_in_llm(state, 5).features, hidden)
    with pytest.raises(ValueError, match="scores"):
        Duet().reduce_in_llm(LayerTokens(hidden, size, anchor, (1, 3, 3)), 2)


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
        ("scope", Scope(), image, 9, lambda v: golden.scope(v["features"], v["saliency"], 9)),
        ("scope-power", Scope(power=0.5), image, 9,
         lambda v: golden.scope(v["features"], v["saliency"], 9, 0.5)),
        ("mmr", MMR(), image, 9, lambda v: golden.mmr(v["features"], v["saliency"], 9)),
        ("mmr-salient", MMR(balance=0.9), image, 9,
         lambda v: golden.mmr(v["features"], v["saliency"], 9, 0.9)),
        ("idselection", IDSelection(), image, 9,
         lambda v: golden.idselection(v["features"], v["saliency"], 9)),
        ("idselection-wide", IDSelection(decay=1.0), image, 9,
         lambda v: golden.idselection(v["features"], v["saliency"], 9, 1.0)),
        ("prunesid", PruneSID(), image, 12,
         lambda v: golden.prunesid(v["features"], v["saliency"], 12)),
        ("prunesid-many", PruneSID(), image, 25,
         lambda v: golden.prunesid(v["features"], v["saliency"], 25)),
        ("prunesid-strict", PruneSID(spread=4.0), image, 16,
         lambda v: golden.prunesid(v["features"], v["saliency"], 16, 4.0)),
        ("cdpruner", CDPruner(), image, 7,
         lambda v: golden.cdpruner(v["features"], v["text_query"], 7)),
        ("cdpruner-negate", CDPruner(negate=True), image, 7,
         lambda v: golden.cdpruner(v["features"], v["text_query"], 7, True)),
        ("mmtok", MMTok(), image, 9,
         lambda v: golden.mmtok(v["features"], v["pre_projector"], v["text_query"], 9)),
        *(
            (f"mmtok-{weight}", MMTok(weight=weight, text_temperature=0.3), image, 14,
             lambda v, weight=weight: golden.mmtok(
                 v["features"], v["pre_projector"], v["text_query"], 14, 0.3, weight))
            for weight in (0.1, 0.5, 3.0)
        ),
        ("vispruner", VisPruner(step=3), image, 11,
         lambda v: golden.vispruner(v["features"], v["saliency"], 11, 3)),
        ("prumerge", PruMerge(), image, 9,
         lambda v: golden.prumerge(v["features"], v["keys"], v["saliency"], 9)),
        ("prumerge-released", PruMerge(merge="released", neighbours=5), image, 9,
         lambda v: golden.prumerge(v["features"], v["keys"], v["saliency"], 9, True)),
        ("tome", ToMe(), image, 14, lambda v: golden.tome(v["features"], v["keys"], 14)),
        ("tome-rounds", ToMe(), image, 3, lambda v: golden.tome(v["features"], v["keys"], 3)),
        ("vscan", VScan(window=2), image, 22,
         lambda v: golden.vscan(v["features"], v["saliency"], v["shallow_saliency"], image, 22, 2)),
        ("vcast", VCast(), video, 13, lambda v: of_video.vcast(v["features"], video, 13)),
        ("vcast-released", VCast(0.1, "released"), video, 13,
         lambda v: of_video.vcast(v["features"], video, 13, 0.1, True)),
        ("vcast-released-full", VCast(0.05, "released"), video, 33,
         lambda v: of_video.vcast(v["features"], video, 33, 0.05, True)),
        ("vcast-few", VCast(), video, 4, lambda v: of_video.vcast(v["features"], video, 4)),
        ("vidcom2", VidCom2(temperature=0.5), video, 13,
         lambda v: of_video.vidcom2(v["features"], video, 13, 0.5)),
        ("fastvid", FastVID(cuts=1, threshold=-0.2, every=2), video, 20,
         lambda v: clusters.fastvid(v["features"], v["saliency"], video, 20, 1, -0.2, 2)),
        ("fastvid-released", FastVID(cuts=2, threshold=-1, every=4, merge="released"), video, 15,
         lambda v: clusters.fastvid(v["features"], v["saliency"], video, 15, 2, -1, 4, True)),
        ("fastvid-released-frames", FastVID(cuts=1, threshold=-1, every=2, merge="released"),
         (8, 2, 4), 34,
         lambda v: clusters.fastvid(v["features"], v["saliency"], (8, 2, 4), 34, 1, -1, 2, True)),
        ("flashvid", FlashVID(threshold=-1, segments=2, link=0.1), video, 15,
         lambda v: clusters.flashvid(v["features"], v["saliency"], video, 15, 2, -1, 0.1)),
        ("flashvid-many-links", FlashVID(threshold=-1, segments=1, link=-1), (6, 2, 3), 10,
         lambda v: clusters.flashvid(v["features"], v["saliency"], (6, 2, 3), 10, 1, -1, -1)),
        ("flashvid-image", FlashVID(neighbours=4), image, 9,
         lambda v: clusters.flashvid(v["features"], v["saliency"], (1, 6, 6), 9, 8, 0.9, 0.8, 4)),
        ("cascade", Cascade(), image, 9, lambda v: clusters.cascade(v["features"], 9)),
        ("cascade-few", Cascade(), image, 2, lambda v: clusters.cascade(v["features"], 2)),
        ("chatunivi", ChatUniVi(), image, 14, lambda v: clusters.chatunivi(v["features"], 14)),
        ("chatunivi-one-scale", ChatUniVi(), image, 3,
         lambda v: clusters.chatunivi(v["features"], 3)),
        ("chatunivi-video", ChatUniVi(events=0.5), (6, 3, 3), 21,
         lambda v: clusters.chatunivi_video(v["features"], 6, 3, 7)),
        *(
            (f"holov-{chunks}-{diversity}", HoloV(chunks, diversity), image, 11,
             lambda v, chunks=chunks, diversity=diversity: golden.holov(
                 v["features"], v["saliency"], 11, chunks, diversity))
            for chunks, diversity in ((16, 0.09), (5, 500.0), (1, 0.0))
        ),
        *(
            (f"foveate-{i}", Foveate(**options), image, 9,
             lambda v, options=options: golden.foveate(
                 v["features"], v["saliency"], v["text_query"], image, 9, **options))
            for i, options in enumerate((
                {}, {"choice": "volume"}, {"choice": "top"}, {"merge": False}, {"purity": 0.1},
                {"salient": 1.0, "place": 1.0, "purity": 0.0},
            ))
        ),
    ]  # fmt: skip


@pytest.mark.parametrize("case", references(), ids=lambda case: case[0])
@pytest.mark.parametrize("seed", [0, 1])
def test_against_reference(case, seed):
    _, method, grid, keep, reference = case
    tokens = inputs(grid=grid, seed=seed)
    reduction = method.reduce(tokens, keep)
    for b in range(2):
        check(reduction, b, reference(sample(tokens, b)))


@pytest.mark.parametrize("count", [3, 7, 12])
def test_in_llm_rules(count):
    t = layer_tokens()
    hidden, size = t.hidden.double().numpy(), t.size.numpy()
    for b in range(2):
        scores = t.scores[b].numpy()
        top = golden.dropped(hidden[b], golden.best_first(scores)[:count])
        for method in (FastV(), PyramidDrop(), VScan(), Duet()):
            check_in_llm(method.reduce_in_llm(t, count), b, top, t.size)
        check_in_llm(
            SparseVLM().reduce_in_llm(t, count), b,
            clusters.sparsevlm(hidden[b], scores, size[b], count), t.size,
        )  # fmt: skip
        check_in_llm(
            DART().reduce_in_llm(t, count), b,
            golden.dart(hidden[b], t.keys[b].numpy(), t.text[b].double().numpy(),
                        t.text_keys[b].numpy(), count), t.size,
        )  # fmt: skip
        check_in_llm(
            Cascade().reduce_in_llm(t, count), b,
            clusters.cascade(hidden[b], count, size=size[b]), t.size,
        )  # fmt: skip


def test_sparsevlm_recycles_as_published():
    # 576 -> 300 kept: 276 dropped, int(82.8) + 1 = 83 recycled into 83 // 10 + 1 = 9
    assert SparseVLM().clusters(276) == 9
    assert SparseVLM(recycle=0).clusters(276) == 0
    state = layer_tokens(n=200)
    out = SparseVLM().reduce_in_llm(state, 60).validate(state.size)
    kept = (out.size == state.size.gather(1, out.anchor)).sum(1)
    assert out.count == 60
    assert (kept >= 55).all()


@pytest.mark.parametrize("count", [0, 1])
def test_sparsevlm_without_room_to_recycle(count):
    state = layer_tokens(n=60)
    out = SparseVLM().reduce_in_llm(state, count).validate(state.size)
    assert out.count == count
    assert out.anchor.tolist() == state.scores.argsort(1, descending=True)[:, :count].tolist()


def test_dart_with_little_text():
    t = layer_tokens(q=6)
    mask = torch.tensor([[True, True, False, False, False, False], [True] * 6])
    both = DART().reduce_in_llm(replace(t, text_mask=mask), 12)
    alone = DART().reduce_in_llm(
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
        later = method.reduce_in_llm(state, count).validate(total.size)
        total = total.then(later).validate()
        assert total.count == count
        assert (total.anchor.diff(dim=1) > 0).all()
        for b in range(2):
            for row in range(count):
                members = total.members(row, b)
                assert len({int(c) // 16 for c in members}) == 1  # a frame's clusters stay in it
                torch.testing.assert_close(
                    total.features[b, row], tokens.features[b, members].mean(0)
                )


def test_cascade_refuses_unequal_frames():
    anchor = torch.tensor([[0, 1, 4], [0, 4, 5]])
    state = LayerTokens(torch.randn(2, 3, 4), torch.ones(2, 3).long(), anchor, (2, 2, 2))
    with pytest.raises(ValueError, match="per frame"):
        Cascade().reduce_in_llm(state, 2)


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


def test_foveate_parts_are_switches():
    tokens = inputs()
    full = Foveate().weights(tokens)
    torch.testing.assert_close(full.sum(1), torch.ones(2))
    alone = Foveate(even=1, salient=0, distinct=0, relevant=0).weights(tokens)
    torch.testing.assert_close(alone, torch.full_like(alone, 1 / 36))
    bare = replace(tokens, saliency=None, text_query=None, text_query_mask=None)
    without = Foveate(salient=0, relevant=0)
    assert torch.equal(Foveate().weights(bare), without.weights(tokens))
    mask = torch.tensor([[True, False, False, False], [False] * 4])
    masked = Foveate(even=1, salient=0, distinct=0).weights(replace(tokens, text_query_mask=mask))
    first = Foveate(even=1, salient=0, distinct=0).weights(
        replace(tokens, text_query=tokens.text_query[:, :1], text_query_mask=None)
    )
    torch.testing.assert_close(masked[0], first[0])
    torch.testing.assert_close(masked[1], alone[1])  # no question: that part is left out


def test_foveate_keeps_equal_things_far_apart():
    # four equal dots on a blank 6 x 6 image: each must be kept, the blank by few
    x = torch.zeros(1, 36, 4)
    dots = [7, 10, 25, 28]
    x[:, dots] = torch.tensor([1.0, 0, 0, 1])
    tokens = VisualTokens(x, (1, 6, 6))
    assert set(dots) <= set(Foveate().reduce(tokens, 8).anchor[0].tolist())
    apart = Foveate(place=None).reduce(tokens, 8)
    assert set(dots) & set(apart.anchor[0].tolist()) == {7}  # without place one dot stands for all


def test_foveate_bad_options():
    for options in ({"even": -1}, {"even": 0, "distinct": 0}, {"place": 0.0}, {"choice": "best"},
                    {"text_temperature": 0}, {"layers": (0.5, 0.75)}):  # fmt: skip
        with pytest.raises(ValueError, match="Foveate"):
            Foveate(**options)
