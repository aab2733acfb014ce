"""Positions of kept tokens, with every cut of a prompt into chunks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.serving.vllm.placing import (
    BASE,
    DIGITS,
    complete,
    delta,
    dense_positions,
    from_columns,
    standing,
    to_columns,
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_digits_survive_the_type_of_the_embeddings(dtype: torch.dtype) -> None:
    places = torch.tensor([[0, 1, 255], [256, 257, 65535], [4095, 511, 12345]])
    columns = to_columns(places, dtype)
    assert columns.shape == (3, 3 * DIGITS) and columns.dtype == dtype
    assert from_columns(columns).equal(places)


@pytest.mark.parametrize("place", [-1, BASE**DIGITS])
def test_places_without_digits_are_refused(place: int) -> None:
    with pytest.raises(ValueError, match="places outside"):
        to_columns(torch.tensor([[place]]), torch.float32)


def test_positions_before_the_images_are_encoded() -> None:
    positions, added = dense_positions(9, [(2, 3, 10), (6, 2, 4)], axes=1)
    # Two words, an image of 10 that keeps 3, a word, an image of 4 that keeps 2, a word.
    assert positions[0].tolist() == [0, 1, -3, -3, -3, 12, -14, -14, 17]
    assert positions[1].tolist() == [0, 1, 11, 11, 11, 12, 16, 16, 17]
    assert added == delta(positions) == 17 + 1 - 9


def test_a_prompt_that_ends_in_an_image_knows_where_text_goes_on() -> None:
    positions, added = dense_positions(4, [(1, 3, 10)], axes=1)
    assert added == 11 - 4
    embeddings = [_embedded(torch.tensor([[2], [5], [7]]))]
    complete(positions, torch.tensor([False, True, True, True]), 0, embeddings, 1)
    assert positions[0].tolist() == [0, 3, 6, 8]
    assert delta(positions) == added


def _embedded(places: torch.Tensor) -> torch.Tensor:
    features = torch.arange(len(places) * 4.0).reshape(-1, 4)
    return torch.cat([features, to_columns(places, features.dtype)], 1)


def test_text_within_a_video_stays_around_the_kept_tokens() -> None:
    """Two frames of 3 tokens, each after a stamp of 2 words; kept: 2, 0 and 4, in this order."""
    is_visual = torch.tensor([0, 0, 1, 1, 1, 0, 0, 1, 1, 1]).bool()
    text = torch.arange(4.0)[:, None].expand(-1, 2) + 1
    features = torch.tensor([[20.0, 20, 7], [10, 10, 8], [40, 40, 9]])  # a further channel
    places = torch.arange(10)[:, None] * 10
    rows, where = standing(is_visual, torch.tensor([2, 0, 4]), text, features, places)
    assert rows[:, 0].tolist() == [1, 2, 20, 10, 3, 4, 40]
    assert rows[:, 2].tolist() == [0, 0, 7, 8, 0, 0, 9]
    # The first of the kept tokens stands first and keeps its own position.
    assert where.flatten().tolist() == [0, 10, 40, 20, 50, 60, 80]


def test_several_kept_tokens_may_stand_for_one() -> None:
    is_visual = torch.tensor([0, 1, 1, 1, 0]).bool()
    rows, where = standing(
        is_visual,
        torch.tensor([1, 1, 2]),
        torch.zeros(2, 1),
        torch.tensor([[1.0], [2.0], [3.0]]),
        torch.arange(5)[:, None],
    )
    assert rows.flatten().tolist() == [0, 1, 2, 3, 0]
    assert where.flatten().tolist() == [0, 2, 2, 3, 4]


@st.composite
def _prompts(draw: st.DrawFn) -> tuple[int, list[tuple[int, int, int]], list[torch.Tensor]]:
    """Length, images, and the places (M, axes) of the kept tokens of each."""
    axes = draw(st.sampled_from([1, 3]))
    images, places, at = [], [], 0
    for _ in range(draw(st.integers(1, 3))):
        at += draw(st.integers(0, 3)) if axes == 1 else draw(st.integers(1, 3))
        count = draw(st.integers(1, 6))
        span = count + draw(st.integers(0, 400))
        one = draw(
            st.lists(
                st.lists(st.integers(0, span - 1), min_size=axes, max_size=axes),
                min_size=count,
                max_size=count,
            )
        )
        images.append((at, count, span))
        places.append(torch.tensor(one))
        at += count
    return at + draw(st.integers(1, 3)), images, places


@settings(max_examples=60, deadline=None)
@given(_prompts(), st.data())
def test_any_cut_into_chunks_gives_the_same_positions(prompt: tuple, data: st.DataObject) -> None:
    length, images, places = prompt
    axes = places[0].shape[1]
    wanted = torch.empty(axes, length, dtype=torch.int64)
    text, position, at = torch.ones(length, dtype=torch.bool), 0, 0
    for (offset, count, span), one in zip(images, places, strict=True):
        wanted[:, at:offset] = torch.arange(position, position + offset - at)
        position += offset - at
        wanted[:, offset : offset + count] = position + one.T
        text[offset : offset + count] = False
        at, position = offset + count, position + span
    wanted[:, at:] = torch.arange(position, position + length - at)

    embedded = [_embedded(one) for one in places]
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=5))) if length > 1 else []
    again = data.draw(st.integers(0, len(cuts)))  # computed twice, after a preemption
    cached = data.draw(st.integers(0, length - 1))  # tokens of the prefix that are never computed
    positions, added = dense_positions(length, images, axes)
    chunks = list(zip([0, *cuts], [*cuts, length], strict=True))
    for start, stop in [*chunks, *chunks[again:]]:
        start = max(start, cached)
        if start >= stop:
            continue
        parts = [
            rows[max(start - offset, 0) : max(stop - offset, 0)]
            for (offset, _, _), rows in zip(images, embedded, strict=True)
        ]
        parts = [part for part in parts if len(part)]
        if not parts:
            continue
        features = complete(positions, ~text, start, parts, axes)
        assert positions[:axes, start:stop].equal(wanted[:, start:stop])
        assert all(one.equal(part[:, :4]) for one, part in zip(features, parts, strict=True))
        assert delta(positions) == added
    assert added == position + length - at - length
