"""Windows, MLP and Q-Former, blocks with their own positions."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import gelu

from positions import MRoPE, PositionError, Text, plan
from vlm.fusion import (
    Fusion,
    FusionConfig,
    FusionError,
    image_blocks,
    report,
    video_blocks,
    windows,
)


def test_windows_are_squares_of_the_grid_in_raster_order():
    features = torch.arange(24.0).view(1, 24, 1)  # 4 rows of 6
    actual = windows(features, (4, 6), 2)[0, :, :, 0].long().tolist()
    assert actual[0] == [0, 1, 6, 7] and actual[1] == [2, 3, 8, 9] and actual[3] == [12, 13, 18, 19]
    assert len(actual) == 6


def test_a_grid_that_the_window_does_not_divide_repeats_its_edge():
    features = torch.arange(9.0).view(1, 9, 1)
    actual = windows(features, (3, 3), 2)[0, :, :, 0].long().tolist()
    assert actual == [[0, 1, 3, 4], [2, 2, 5, 5], [6, 7, 6, 7], [8, 8, 8, 8]]


def test_window_one_is_the_identity():
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
    # A set of keys, not a sequence: the order of the tokens has no effect.
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
    actual = report(blocks, config)
    assert [(r["expert"], r["tokens"], r["positions"]) for r in actual] == [
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
