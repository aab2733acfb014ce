"""Properties that hold for every layout, scheme and reduction."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from positions import (
    PPE,
    V2PE,
    Compact,
    Image,
    MRoPE,
    PositionError,
    Randomised,
    Sequential,
    Text,
    Video,
    from_positions,
    plan,
)
from tests.positions.hosts import Reduced, reduced

sides = st.integers(1, 4)
texts = st.builds(Text, st.integers(0, 5))
images = st.builds(Image, st.tuples(sides, sides))
videos = st.builds(Video, st.tuples(sides, sides, sides))
layouts = st.lists(st.one_of(texts, images, videos), min_size=1, max_size=6)
schemes = st.one_of(
    st.just(Sequential()),
    st.builds(V2PE, st.sampled_from([1.0, 0.5, 0.3, 1 / 256, "random"])),
    st.builds(Compact, st.sampled_from(["row", "all", "row_col", "original"])),
    st.builds(MRoPE, st.sampled_from([None, 2.0]), time_scale=st.sampled_from([1.0, 0.3])),
    st.sampled_from([Randomised(80), Randomised((6, 6, 6))]),
)
quick = settings(max_examples=60, deadline=None)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@st.composite
def reductions(draw, count):
    """A random reduction of `count` tokens, cells dropped and merged, possibly all dropped."""
    rows = draw(st.integers(0, count))
    anchors = sorted(draw(st.permutations(range(count)))[:rows])
    assign = draw(st.lists(st.integers(-1, rows - 1), min_size=count, max_size=count))
    for row, anchor in enumerate(anchors):
        assign[anchor] = row
    return reduced(assign, anchors)


@st.composite
def cases(draw):
    """A plan and a reduction of each of its visual inputs."""
    layout, scheme = draw(layouts), draw(schemes)
    made = plan(layout, scheme, generator=seeded())
    chosen = {
        index: draw(reductions(item.tokens))
        for index, item in enumerate(layout)
        if not isinstance(item, Text) and draw(st.booleans())
    }
    return made, chosen


@quick
@given(layouts, schemes)
def test_advance_rule(layout, scheme):
    """Text after an input is at ceil(largest position) + 1, and tokens never go back in time."""
    made = plan(layout, scheme, generator=seeded())
    cursor = 0.0
    for index, item in enumerate(layout):
        placed = made.positions[made.rows(index), 0]
        if isinstance(item, Text):
            expected = cursor + torch.arange(item.length, dtype=torch.float64)
            assert torch.equal(placed, expected[:, None].expand(-1, 3))
            cursor += item.length
        else:
            assert float(placed.min()) > cursor - 1
            cursor = math.ceil(float(placed.max())) + 1
    assert made.next_position == cursor
    assert cursor == int(cursor)


@quick
@given(cases())
def test_kept_tokens_keep_their_positions_and_their_order(case):
    made, chosen = case
    after = made.after(chosen)
    assert torch.equal(after.positions[:, 0], made.dense_positions[after.source])
    assert bool((after.source.diff() > 0).all())
    assert after.next_position == made.next_position
    assert len(after) == len(made) - sum(len(r.assign) - len(r.anchor) for r in chosen.values())


@quick
@given(cases())
def test_text_never_moves(case):
    made, chosen = case
    after = made.after(chosen)
    for index, item in enumerate(made.segments):
        if isinstance(item, Text):
            before, now = made.rows(index), after.rows(index)
            assert torch.equal(made.positions[before], after.positions[now])


@quick
@given(cases())
def test_sizes_and_members_are_those_of_the_reduction(case):
    made, chosen = case
    after = made.after(chosen)
    assert int(after.sizes.sum()) == int((after.row_of >= 0).sum())
    for index, reduction in chosen.items():
        low, high = made.bounds[index : index + 2].tolist()
        row_of = after.row_of[low:high]
        rows = after.rows(index)
        assert torch.equal(torch.where(row_of >= 0, row_of - rows[:1].sum(), -1), reduction.assign)
        assert torch.equal(after.index_in_segment[rows], reduction.anchor)
        assert bool((after.segment_of[rows] == index).all())


@quick
@given(cases(), st.data())
def test_reductions_follow_one_another(case, data):
    """Two reductions in a row are one reduction with the two maps composed."""
    made, chosen = case
    once = made.after(chosen)
    again = {
        index: data.draw(reductions(len(once.rows(index))))
        for index in chosen
        if len(once.rows(index))
    }
    twice = once.after(again)
    for index, second in again.items():
        first = chosen[index]
        goes = torch.full_like(first.assign, -1)
        stays = first.assign >= 0
        goes[stays] = second.assign[first.assign[stays]]
        chosen[index] = Reduced(goes, first.anchor[second.anchor])
    direct = made.after(chosen)
    assert torch.equal(twice.row_of, direct.row_of)
    assert torch.equal(twice.source, direct.source)
    assert torch.equal(twice.positions, direct.positions)


@quick
@given(cases())
def test_keeping_all_is_a_round_trip(case):
    made, _ = case
    keep = {
        index: Reduced(torch.arange(item.tokens), torch.arange(item.tokens))
        for index, item in enumerate(made.segments)
        if not isinstance(item, Text)
    }
    after = made.after(keep)
    assert torch.equal(after.positions, made.positions)
    assert torch.equal(after.source, made.source)


@quick
@given(cases())
def test_renumbered_positions_have_no_gaps(case):
    made, chosen = case
    after = made.after(chosen, renumber=True)
    assert after.positions[:, 0, 0].tolist() == list(range(len(after)))
    assert torch.equal(after.positions, after.positions[..., :1].expand_as(after.positions))
    assert after.next_position == len(after)
    assert torch.equal(after.dense_positions[after.source], after.positions[:, 0])


@quick
@given(cases())
def test_slots_come_from_the_members(case):
    made, chosen = case
    chosen = {key: r for key, r in chosen.items() if len(r.assign) >= 3}
    after = made.after(chosen, PPE(3))
    for row in range(len(after)):
        members = (after.row_of == row).nonzero().squeeze(1)
        placed = {tuple(position) for position in made.dense_positions[members].tolist()}
        slots = [tuple(position) for position in after.positions[row].tolist()]
        assert set(slots) <= placed
        assert len({*slots}) == min(3, len(placed)) or len(placed) < len(members)
        assert slots[0] == tuple(made.dense_positions[after.source[row]].tolist())


def test_streams_do_not_move_each_other():
    """Tokens added to the video stream leave every id of the answer stream as it was."""
    answer = [Text(3, stream="answer"), Text(2, stream="answer")]
    video = [Text(4), Video((2, 1, 2)), Image((1, 2))]
    streams = {"answer": 1000.0}
    few = plan([*video[:2], answer[0], answer[1]], MRoPE(), streams=streams)
    many = plan([*video[:2], answer[0], *video[2:], answer[1]], MRoPE(), streams=streams)
    ids = lambda made: made.positions[:, 0, 0][made.positions[:, 0, 0] >= 1000]  # noqa: E731
    assert ids(few).tolist() == ids(many).tolist() == [1000, 1001, 1002, 1003, 1004]
    assert many.next_position == 1005
    assert many.streams["main"] == (0, few.streams["main"][1] + 2)
    group = plan([*video, *answer], streams={"answer": 0.0})
    assert group.positions[-5:, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_a_second_turn_starts_where_the_first_ended():
    first = plan([Text(3), Image((2, 2))], MRoPE())
    second = plan([Image((1, 2)), Text(1)], MRoPE(), start=first.next_position)
    whole = plan([Text(3), Image((2, 2)), Image((1, 2)), Text(1)], MRoPE())
    assert torch.equal(torch.cat([first.positions, second.positions]), whole.positions)


def test_positions_made_elsewhere_can_be_reduced():
    layout = [Text(1), Image((2, 2)), Text(1)]
    given = torch.tensor([[0, 0, 0], [1, 1, 1], [1, 1, 2], [1, 2, 1], [1, 2, 2], [3, 3, 3]])
    made = from_positions(given, layout)
    assert torch.equal(made.positions, plan(layout, MRoPE()).positions)
    assert made.next_position == 4
    after = made.after({1: reduced([-1, 0, 0, -1], [1])})
    assert after.positions[:, 0].tolist() == [[0, 0, 0], [1, 1, 2], [3, 3, 3]]
    assert from_positions(torch.arange(3)).next_position == 3
    with pytest.raises(PositionError, match=r"expected \(6,\)"):
        from_positions(given[:5], layout)


def test_schemes_of_segments_are_fitted_to_the_whole_layout():
    layout = [Text(30), Image((24, 24), scheme=V2PE("auto", window=180)), Image((1, 4))]
    made = plan(layout, MRoPE())
    assert made.positions[30:32, 0, 0].diff().tolist() == [0.25]
