"""Windows, MLP and Q-Former, blocks with their own positions, the canvas."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import gelu

from positions import MRoPE, PositionError, Text, plan
from vlm import canvas
from vlm.fusion import (
    Block,
    Fusion,
    FusionConfig,
    FusionError,
    image_blocks,
    report,
    video_blocks,
    windows,
)


def test_windows_are_squares_of_the_grid_in_raster_order():
    cells = torch.arange(24.0).view(1, 24, 1)  # 4 rows of 6
    found = windows(cells, (4, 6), 2)[0, :, :, 0].long().tolist()
    assert found[0] == [0, 1, 6, 7] and found[1] == [2, 3, 8, 9] and found[3] == [12, 13, 18, 19]
    assert len(found) == 6


def test_a_grid_that_the_window_does_not_divide_repeats_its_edge():
    cells = torch.arange(9.0).view(1, 9, 1)
    found = windows(cells, (3, 3), 2)[0, :, :, 0].long().tolist()
    assert found == [[0, 1, 3, 4], [2, 2, 5, 5], [6, 7, 6, 7], [8, 8, 8, 8]]


def test_window_one_is_the_cells_themselves():
    x = torch.randn(2, 6, 3)
    assert torch.equal(windows(x, (2, 3), 1)[:, :, 0], x)


def test_mlp_has_a_first_layer_each_and_one_second():
    fusion = Fusion(FusionConfig(window={"sam": 2}), {"clip": 6, "sam": 3}, 8)
    x = torch.randn(2, 16, 3)
    first = fusion.first["sam"]
    patches = x.view(2, 2, 2, 2, 2, 3).transpose(2, 3).reshape(2, 4, 12)
    expected = fusion.second(gelu(first(patches)))
    torch.testing.assert_close(fusion("sam", x, (4, 4)), expected)
    assert first.in_features == 12 and fusion.first["clip"].in_features == 6
    assert {n for n, _ in fusion.named_parameters() if n.startswith("second")} == {
        "second.weight",
        "second.bias",
    }


def test_qformer_gives_its_queries_whatever_the_grid():
    torch.manual_seed(0)
    config = FusionConfig("qformer", queries=5, heads=2, layers=1)
    fusion = Fusion(config, {"clip": 6, "sam": 3}, 8)
    out = fusion("clip", torch.randn(2, 9, 6), (3, 3))
    assert out.shape == (2, 5, 8) and config.grid("clip", (3, 3)) == (1, 5)
    # A set of keys, not a sequence: the order of the cells says nothing.
    x = torch.randn(1, 9, 6)
    torch.testing.assert_close(fusion("clip", x, (3, 3)), fusion("clip", x.flip(1), (3, 3)))
    out.sum().backward()
    assert fusion.queries["clip"].grad is not None and fusion.queries["sam"].grad is None


def test_scores_follow_the_windows():
    fusion = Fusion(FusionConfig(window={"sam": 2}), {"clip": 6, "sam": 3}, 8)
    saliency = torch.arange(16.0).view(1, 16)
    assert fusion.per_token("sam", saliency, (4, 4)).tolist() == [[2.5, 4.5, 10.5, 12.5]]
    keys = torch.randn(1, 16, 5)
    assert fusion.per_token("sam", keys, (4, 4)).shape == (1, 4, 5)
    assert torch.equal(fusion.per_token("clip", keys, (4, 4)), keys)
    assert (
        Fusion(FusionConfig("qformer", heads=2), {"a": 6}, 8).per_token("a", keys, (4, 4)) is None
    )


def test_dropping_experts_is_drawn_by_the_generator_and_spares_one():
    fusion = Fusion(FusionConfig(drop=0.6), {"a": 2, "b": 2, "c": 2}, 4)
    fusion.generator = torch.Generator().manual_seed(3)
    drawn = fusion.draw(4000)
    fusion.generator.manual_seed(3)
    assert torch.equal(fusion.draw(4000), drawn)
    assert drawn.any(1).all()
    # A block stays with 0.4, or where all three would go (0.216) with a third of the chance.
    share = drawn.float().mean(0)
    torch.testing.assert_close(share, torch.full((3,), 0.4 + 0.216 / 3), atol=0.03, rtol=0)
    assert fusion.eval().draw(9).all()


# --- blocks and their positions ---


def test_blocks_of_an_image_with_tiles_and_of_a_video():
    grids = {"clip": (3, 3), "sam": (2, 2)}
    blocks = image_blocks(grids, {"clip": (2, 1)})
    assert [b.grid for b in blocks] == [(1, 3, 3), (1, 6, 3), (1, 2, 2)]
    assert [b.expert for b in blocks] == ["clip", "clip", "sam"]
    video = video_blocks(grids, 4, (0.0, 1.0, 2.0, 3.5))
    assert [b.tokens for b in video] == [36, 16] and video[1].times == (0.0, 1.0, 2.0, 3.5)
    assert video[0].segment(None).grid == (4, 3, 3)


@pytest.mark.parametrize(("by", "taken"), [("original", 4096), ("row", 64), ("all", 1)])
def test_each_block_has_its_own_scheme_and_the_report_counts_positions(by, taken):
    config = FusionConfig(scheme={"sam": {"type": "Compact", "by": by}})
    blocks = image_blocks({"clip": (24, 24), "sam": (64, 64)}, {})
    found = report(blocks, config)
    assert [(r["expert"], r["tokens"], r["positions"]) for r in found] == [
        ("clip", 576, 576.0),
        ("sam", 4096, taken),
    ]
    whole = plan([Text(3), *(b.segment(config.scheme_of(b.expert)) for b in blocks), Text(1)])
    assert whole.next_position == 3 + 576 + taken + 1
    quarter = FusionConfig(scheme={"clip": {"type": "V2PE", "delta": 0.25}})
    assert report(blocks, quarter)[0]["positions"] == 144
    assert isinstance(FusionConfig(scheme={"a": {"type": "MRoPE"}}).scheme_of("a"), MRoPE)
    assert whole.positions[3 + 576, 0, 0] == 579 and whole.positions[-1, 0, 0] == 579 + taken


def test_bad_fusions_say_what_would_be_right():
    for settings, words in [
        ({"kind": "mean"}, "kind='mean'"),
        ({"drop": 1.0}, "drop=1.0"),
        ({"window": {"a": 0}}, "'a' is 0"),
        ({"scheme": {"a": {"type": "Plan"}}}, "expected one of"),
        ({"scheme": {"a": {"type": "Compact", "x": 1}}}, "x"),
        ({"scheme": {"a": {"type": "Compact", "by": "diagonal"}}}, "diagonal"),
        ({"activation": "tanhh"}, "tanhh"),
        ({"colour": 1}, "colour"),
    ]:
        with pytest.raises((FusionError, PositionError), match=words):
            FusionConfig.of(settings)
    with pytest.raises(FusionError, match="scheme of 'x'"):
        Fusion(FusionConfig(window={"x": 2}), {"a": 2}, 4)
    with pytest.raises(FusionError, match="heads=8"):
        Fusion(FusionConfig("qformer"), {"a": 2}, 4)


# --- the canvas ---


def test_cells_stand_in_the_middle_of_what_they_cover():
    blocks = (Block("sam", (1, 4, 4)), Block("clip", (1, 2, 2)))
    at = canvas.places(blocks)
    assert at[:4].tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 0, 3]]
    assert at[16:].tolist() == [[0, 0.5, 0.5], [0, 0.5, 2.5], [0, 2.5, 0.5], [0, 2.5, 2.5]]
    n, size = 3, 7
    middle = canvas.places((Block("a", (1, n, 1)),), (size, 1))[:, 1]
    assert middle.tolist() == [(i + 0.5) * size / n - 0.5 for i in range(n)]


def test_saliency_of_experts_is_made_comparable():
    blocks = (Block("a", (1, 1, 2)), Block("b", (1, 1, 2)))
    joint = canvas.join(blocks, torch.zeros(1, 4, 3), torch.tensor([[1.0, 3.0, 100.0, 300.0]]))
    assert joint.saliency.tolist() == [[0.5, 1.5, 0.5, 1.5]]
    assert joint.block.tolist() == [0, 0, 1, 1]


def test_joint_reduction_merges_across_experts_by_place():
    blocks = (Block("fine", (1, 2, 2)), Block("coarse", (1, 1, 1)), Block("line", (1, 1, 2)))
    features = torch.arange(7.0).view(1, 7, 1)
    saliency = torch.tensor([[9.0, 0, 0, 5.0, 1.0, 1.0, 1.0]])
    found = canvas.reduce(canvas.join(blocks, features, saliency), 2)
    assert found.anchor.tolist() == [[0, 3]]
    # (0, 1), (1, 0) and the coarse (0.5, 0.5) are equally near to both: the first has them.
    assert found.assign.tolist() == [[0, 0, 0, 1, 0, 0, 1]]
    assert found.size.tolist() == [[5, 2]]
    torch.testing.assert_close(found.features.flatten(), torch.tensor([12 / 5, 4.5]))
    weighted = (found.features * found.size[..., None]).sum()
    torch.testing.assert_close(weighted, features.sum())


def test_joint_reduction_goes_into_a_plan_of_several_segments():
    blocks = (Block("a", (1, 2, 2)), Block("b", (1, 1, 3)))
    generator = torch.Generator().manual_seed(0)
    joint = canvas.join(
        blocks, torch.randn(1, 7, 4, generator=generator), torch.rand(1, 7, generator=generator)
    )
    found = canvas.reduce(joint, 3)
    segments = [Text(2), *(b.segment(None) for b in blocks), Text(1)]
    row = canvas.JointReduction(found.features[0], found.assign[0], found.anchor[0], found.size[0])
    after = plan(segments).after({(1, 2): row})
    assert len(after) == 2 + 3 + 1 and after.next_position == 10
    assert after.positions[2:5, 0, 0].tolist() == (found.anchor[0] + 2).tolist()


def test_keeping_all_changes_nothing():
    blocks = (Block("a", (1, 2, 2)), Block("b", (1, 1, 3)))
    features = torch.randn(2, 7, 4)
    found = canvas.reduce(canvas.join(blocks, features, torch.rand(2, 7)), 7)
    assert torch.equal(found.features, features)
    assert found.assign.tolist() == [list(range(7))] * 2


def test_bad_joint_inputs():
    blocks = (Block("a", (1, 2, 2)),)
    joint = canvas.join(blocks, torch.zeros(1, 4, 1))
    with pytest.raises(FusionError, match="no saliency"):
        canvas.reduce(joint, 2)
    with pytest.raises(FusionError, match="keep=5"):
        canvas.reduce(canvas.join(blocks, torch.zeros(1, 4, 1), torch.ones(1, 4)), 5)
    with pytest.raises(FusionError, match=r"\(B, 4, D\)"):
        canvas.join(blocks, torch.zeros(1, 3, 1))
