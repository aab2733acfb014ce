"""Videos reduced while they are read: bounds, shares, chunks, sizes."""

from __future__ import annotations

import pytest
import torch

from compress import Stream, list_methods
from compress.methods import Cascade, Duet, ToMe, get_method
from compress.tokens import VisualTokens
from tests.marks import later

H, W, D = 2, 3, 8
TOKENS = H * W
IN_LLM = ("dart", "fastv", "pyramiddrop", "sparsevlm")
METHODS = [name for name in list_methods() if name not in IN_LLM]


def video(frames, seed=0):
    g = torch.Generator().manual_seed(seed)
    n = frames * TOKENS
    return VisualTokens(
        torch.randn(1, n, D, generator=g),
        (frames, H, W),
        keys=torch.randn(1, n, 5, generator=g),
        saliency=torch.rand(1, n, generator=g),
        shallow_saliency=torch.rand(1, n, generator=g),
        pre_projector=torch.randn(1, n, D + 2, generator=g),
    )


def fed(tokens, chunk, *args, **kwargs):
    """A stream that was given a video in chunks of so many frames."""
    stream = Stream(*args, **kwargs)
    frames = tokens.grid[0]
    for start in range(0, frames, chunk):
        count = min(chunk, frames - start)
        stream.add(tokens.fold([start * TOKENS], (count, H, W)))
    return stream


def query():
    return torch.randn(3, D, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("total", [40, *later(None)])
@pytest.mark.parametrize("name", METHODS)
def test_any_method_and_any_chunks_give_the_same(name, total):
    results = []
    for chunk in (1, 3, 7, 40):
        generator = torch.Generator().manual_seed(0)
        stream = fed(
            video(40),
            chunk,
            name,
            24,
            total=total,
            window=4,
            text_query=query(),
            generator=generator,
        )
        results.append(stream.result())
        assert stream.most <= 24 + 4 * TOKENS
    for other in results[1:]:
        for field in ("features", "places", "size", "keys", "saliency"):
            assert torch.equal(getattr(results[0], field), getattr(other, field))
    count = len(results[0])
    assert count == 24 if total else 0.6 * 24 <= count <= 24
    order = results[0].places @ torch.tensor([TOKENS, W, 1])
    if name not in ("chatunivi", "vcast"):  # rows of several scales; of several frames at once
        assert (order.diff() > 0).all()


@pytest.mark.parametrize("total", [None, 30, *later(4, 300)])
@pytest.mark.parametrize("window", [3, *later(1, 8)])
def test_no_more_is_held_than_budget_and_window(window, total):
    """Whatever the length, also one that was announced wrongly."""
    for budget in (2, 5, 17, 64, 1000):
        stream = Stream("uniform", budget, window=window, total=total)
        for frame in range(61):
            stream.add(video(1, frame))
            assert len(stream) <= budget + window * TOKENS
            assert len(stream.result()) <= budget
        assert stream.most <= budget + window * TOKENS


def test_a_known_length_uses_the_whole_budget_and_reduces_once():
    tokens = video(40)
    kept = fed(tokens, 5, "uniform", 30, total=40, window=4).result()
    assert len(kept) == 30
    assert torch.bincount(kept.places[:, 0] // 4, minlength=10).tolist() == [3] * 10
    expected = []
    for start in range(0, 40, 4):
        part = tokens.fold([start * TOKENS], (4, H, W))
        reduced = get_method("uniform").reduce(part, 3)
        expected.append(reduced.features[0])
    assert torch.equal(kept.features, torch.cat(expected))


@pytest.mark.parametrize("frames", [23, 64, 200])
def test_parts_of_a_video_of_unknown_length_have_equal_shares(frames):
    kept = fed(video(frames), 3, "divprune", 60, window=4).result()
    assert 0.7 * 60 <= len(kept) <= 60 or frames * TOKENS <= 60
    halves = (kept.places[:, 0] < frames // 2).sum() / len(kept)
    assert 0.4 <= halves <= 0.6


@pytest.mark.parametrize(
    ("method", "window"), [(Cascade(in_llm=False), 1), (ToMe(), 3), ("pool", 3)]
)
def test_merging_again_and_again_conserves_the_weighted_sum(method, window):
    tokens = video(50)
    tokens = VisualTokens(tokens.features.double(), tokens.grid, keys=tokens.keys)
    kept = fed(tokens, 6, method, 12, window=window).result()
    assert kept.size.sum() == 50 * TOKENS and kept.size.max() > 3 * TOKENS
    total = (kept.features * kept.size[:, None]).sum(0)
    torch.testing.assert_close(total, tokens.features[0].sum(0), atol=1e-9, rtol=0)


def test_a_result_in_between_changes_nothing():
    asked, quiet = (Stream("divprune", 20, window=4) for _ in range(2))
    for frame in range(30):
        for stream in (asked, quiet):
            stream.add(video(1, frame))
        assert len(asked.result()) <= 20
    assert torch.equal(asked.result().features, quiet.result().features)


def test_a_chunk_is_not_kept_alive_by_what_is_kept_of_it():
    tokens = video(8)
    stream = fed(tokens, 8, "uniform", 1000, window=8)
    kept = stream.result()
    assert (
        kept.features.untyped_storage().data_ptr() != tokens.features.untyped_storage().data_ptr()
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"budget": 1}, "budget is 1: expected at least 2"),
        ({"total": 0}, "total is 0"),
        ({"window": 0}, "window is 0"),
        ({"shrink": 1.0}, "shrink is 1.0"),
        ({"method": "fastv"}, "nothing before the language model"),
        ({"method": Duet(cluster="attention")}, "attention between all tokens"),
    ],
)
def test_bad_arguments_are_named(given, says):
    with pytest.raises(ValueError, match=says):
        Stream(**{"method": "uniform", "budget": 8, **given})
    with pytest.raises(TypeError, match=r"budget is 0\.5"):
        Stream("uniform", 0.5)


def test_bad_frames_are_refused():
    stream = Stream("uniform", 8)
    with pytest.raises(ValueError, match="no frames were added"):
        stream.result()
    stream.add(video(2))
    with pytest.raises(ValueError, match=r"frames of \(2, 3\) tokens"):
        stream.add(VisualTokens(torch.zeros(1, 12, D), (2, 3, 2)))
    with pytest.raises(ValueError, match="one video"):
        stream.add(VisualTokens(torch.zeros(2, 6, D), (1, 2, 3)))
