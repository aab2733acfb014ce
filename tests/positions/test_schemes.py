"""Each scheme against its paper's numbers and, for M-RoPE, against transformers itself."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.models.qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen2_vl import Qwen2VLModel
from transformers.models.qwen3_vl import Qwen3VLModel

from positions import (
    V2PE,
    Compact,
    Image,
    MRoPE,
    PositionError,
    Randomised,
    Scheme,
    Sequential,
    Text,
    Traversal,
    Video,
    layout_of,
    plan,
)


def flat(made):
    """(S,) positions of a plan whose axes are equal."""
    assert torch.equal(made.positions, made.positions[..., :1].expand_as(made.positions))
    return made.positions[:, 0, 0].tolist()


def test_sequential_counts_every_token():
    made = plan([Text(2), Image((2, 2)), Text(1), Video((2, 1, 1)), Text(1)], Sequential())
    assert flat(made) == list(range(10))
    assert made.next_position == 10


def test_v2pe_matches_the_released_example():
    """<img> at 20, stride 16 of 256, 7 tiles of 256 tokens: 20.0625 to 132, then 133."""
    made = plan([Text(21), Image((7 * 16, 16)), Text(1)], V2PE(16 / 256))
    placed = flat(made)
    assert placed[20:22] == [20.0, 20.0625]
    assert placed[-2:] == [132.0, 133.0]
    assert made.next_position == 134


def test_v2pe_of_one_is_sequential():
    layout = [Image((2, 3)), Text(2), Image((1, 2)), Image((2, 1)), Text(1)]
    assert torch.equal(plan(layout, V2PE(1)).positions, plan(layout).positions)


def test_v2pe_text_stays_whole_when_tokens_do_not_fill_a_step():
    made = plan([Text(1), Image((1, 3)), Text(2)], V2PE(1 / 2))
    assert flat(made) == [0, 0.5, 1, 1.5, 3, 4]


def test_v2pe_draws_one_increment_an_input_or_a_frame():
    layout = [Text(1), *[Image((1, 4))] * 6]
    draw = lambda seed: plan(  # noqa: E731
        layout, V2PE("random"), generator=torch.Generator().manual_seed(seed)
    )
    steps = draw(3).positions[1:, 0, 0].view(6, 4).diff(dim=1)
    assert torch.equal(steps, steps[:, :1].expand_as(steps))
    assert len(steps[:, 0].unique()) > 1
    assert set(steps[:, 0].tolist()) <= {2.0**-n for n in range(9)}
    assert torch.equal(draw(3).positions, draw(3).positions)
    assert not torch.equal(draw(3).positions, draw(4).positions)
    video = plan(
        [Text(1), Video((6, 1, 4))],
        V2PE("random", per="frame"),
        generator=torch.Generator().manual_seed(1),
    )
    inside = video.positions[1:, 0, 0].view(6, 4).diff(dim=1)
    assert len(inside[:, 0].unique()) > 1
    with pytest.raises(PositionError, match="generator"):
        plan(layout, V2PE("random"))


@pytest.mark.parametrize(
    ("window", "dtype", "delta"),
    [
        (700, torch.bfloat16, 1.0),
        (320, torch.bfloat16, 0.5),
        (40, torch.bfloat16, 1 / 64),
        (34, torch.float32, 1 / 256),
        (34, torch.float16, 1 / 256),
    ],
)
def test_v2pe_auto_takes_the_largest_increment_that_fits(window, dtype, delta):
    made = plan([Text(30), Image((24, 24))], V2PE("auto", window=window, dtype=dtype))
    assert float(made.positions[31, 0, 0] - made.positions[30, 0, 0]) == delta
    assert made.next_position <= window


def test_v2pe_auto_says_what_to_do_where_nothing_fits():
    with pytest.raises(PositionError, match=r"576 visual tokens do not fit in 34 .*reduce"):
        plan([Text(30), Image((24, 24))], V2PE("auto", window=34))


class Shifted(Scheme):
    """A scheme of one's own, which leaves `fitted` to the base class."""

    def place(self, item, start, generator):
        return np.full((item.tokens, 1), start + 10.0)


def test_traversals_of_a_grid():
    def at(by, item):
        return plan([Text(2), item, Text(1)], Traversal(by)).positions[:, 0, 0].tolist()

    assert (
        at("row", Image((2, 3)))
        == plan([Text(2), Image((2, 3)), Text(1)]).positions[:, 0, 0].tolist()
    )
    assert at("column", Image((2, 3))) == [0, 1, 2, 4, 6, 3, 5, 7, 8]
    assert at("snake", Image((2, 3))) == [0, 1, 2, 3, 4, 7, 6, 5, 8]
    assert at("column", Video((2, 2, 2)))[2:] == [2, 4, 3, 5, 6, 8, 7, 9, 10]
    with pytest.raises(PositionError, match="by='diagonal'"):
        Traversal("diagonal")


def test_schemes_of_ones_own():
    assert flat(plan([Text(1), Image((1, 2)), Text(1)], Shifted())) == [0, 11, 11, 12]
    assert isinstance(Shifted(), Scheme) and isinstance(V2PE(1 / 4), Scheme)
    assert not isinstance("original", Scheme)


def test_v2pe_auto_draws_nothing():
    """Its increment is settled by the layout; without one it is refused, never drawn."""
    with pytest.raises(PositionError, match=r"V2PE\.fitted\(segments\)"):
        V2PE("auto", window=100).place(Image((2, 2)), 3.0, torch.Generator())
    layout = [Text(30), Image((24, 24))]
    draws = [
        plan(layout, V2PE("auto", window=180), generator=torch.Generator().manual_seed(seed))
        for seed in range(3)
    ]
    assert all(flat(made) == flat(plan(layout, V2PE(1 / 4))) for made in draws)


@pytest.mark.parametrize("scheme", [V2PE("random"), V2PE("random", per="frame"), Randomised(40)])
def test_schemes_that_draw_need_a_generator_and_nothing_else(scheme):
    layout = [Text(2), Video((2, 2, 2)), Image((2, 2)), Text(1)]
    generator = torch.Generator().manual_seed(3)
    first, second = (plan(layout, scheme, generator=generator) for _ in range(2))
    again = plan(layout, scheme, generator=torch.Generator().manual_seed(3))
    assert flat(first) == flat(again) != flat(second)
    with pytest.raises(PositionError, match=r"draws at random: expected plan\(\.\.\., generator="):
        plan(layout, scheme)


@pytest.mark.parametrize("delta", [-0.5, 0, float("inf"), float("nan"), "some"])
def test_v2pe_refuses_bad_increments(delta):
    with pytest.raises(PositionError, match="delta="):
        V2PE(delta)


@pytest.mark.parametrize(
    ("by", "placed", "following"),
    [
        ("original", [5, 6, 7, 8, 9, 10], 11),
        ("row", [5, 5, 5, 6, 6, 6], 7),
        ("all", [5, 5, 5, 5, 5, 5], 6),
    ],
)
def test_compact_positions(by, placed, following):
    made = plan([Text(5), Image((2, 3)), Text(1)], Compact(by))
    assert flat(made)[5:] == [*placed, following]


@pytest.mark.parametrize(("by", "occupied"), [("original", 4096), ("row", 64), ("all", 1)])
def test_sam_occupies_what_mousi_says(by, occupied):
    assert plan([Image((64, 64))], Compact(by)).next_position == occupied


def test_compact_by_row_and_column_needs_three_axes():
    made = plan([Text(1), Image((2, 2)), Text(1)], Compact("row_col"))
    assert made.positions[:, 0, 1].tolist() == [0, 1, 1, 2, 2, 3]
    assert made.positions[:, 0, 2].tolist() == [0, 1, 2, 1, 2, 3]


def test_compact_keeps_frames_apart():
    made = plan([Video((3, 2, 2)), Text(1)], Compact("all"))
    assert flat(made) == [0] * 4 + [1] * 4 + [2] * 4 + [3]


def stock_index(model_class, layout, tokens_per_second=2, times=None, frames_apart=False):
    """Positions (S, 3) and the next position of transformers' own `get_rope_index`."""
    self = SimpleNamespace(
        config=SimpleNamespace(
            vision_config=SimpleNamespace(spatial_merge_size=2, tokens_per_second=tokens_per_second)
        ),
    )
    self.get_vision_position_ids = lambda *args, **kwargs: model_class.get_vision_position_ids(
        self, *args, **kwargs
    )
    kinds, grids = [], {1: [], 2: []}
    for item in layout:
        kind = {Text: 0, Image: 1, Video: 2}[type(item)]
        kinds += [kind] * item.tokens
        if kind:
            t, h, w = item.shape
            grids[kind].append([t, 2 * h, 2 * w])
    videos = grids[2]
    if frames_apart:  # Qwen3-VL is told of whole videos and splits them itself
        videos = [[len(videos), *videos[0][1:]]] if videos else []
    positions, delta = model_class.get_rope_index(
        self,
        input_ids=torch.ones(1, len(kinds), dtype=torch.long),
        mm_token_type_ids=torch.tensor([kinds]),
        image_grid_thw=torch.tensor(grids[1]) if grids[1] else None,
        video_grid_thw=torch.tensor(videos) if videos else None,
        second_per_grid_ts=torch.tensor(times) if times is not None else None,
        attention_mask=torch.ones(1, len(kinds), dtype=torch.long),
    )
    return positions[:, 0].T.double(), float(delta) + len(kinds)


LAYOUTS = {
    "text": [Text(7)],
    "image": [Text(3), Image((2, 5)), Text(4)],
    "images": [Image((3, 2)), Text(1), Image((4, 4)), Text(1), Image((1, 1)), Text(2)],
    "video": [Text(3), Video((4, 5, 4)), Text(4)],
    "mixed": [Text(3), Video((2, 3, 2)), Text(4), Image((2, 2)), Video((3, 3, 3)), Text(2)],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_qwen2_vl_equals_transformers(name):
    made = plan(LAYOUTS[name], MRoPE())
    expected, following = stock_index(Qwen2VLModel, LAYOUTS[name])
    assert torch.equal(made.positions[:, 0], expected)
    assert made.next_position == following


@pytest.mark.parametrize(
    ("rate", "seconds"),
    [(2, 0.5), (2, 0.7), (2, 0.3), (4, 1.0), (4, 0.0417), (25, 0.04), (25, 0.12), (25, 0.0417)],
)
def test_qwen2_5_vl_equals_transformers(rate, seconds):
    layout = [Text(3), Video((9, 40, 2), times=seconds), Text(4), Image((2, 3)), Text(1)]
    made = plan(layout, MRoPE(tokens_per_second=rate))
    expected, following = stock_index(Qwen2_5_VLModel, layout, rate, [seconds])
    assert torch.equal(made.positions[:, 0], expected)
    assert made.next_position == following


def test_qwen3_vl_equals_transformers():
    ids = torch.tensor([1, 1, *([9] * 4 + [2, 2]) * 3, *[8] * 6, 1])
    layout, keys = layout_of(ids, {9: [Video((3, 2, 2))], 8: [Image((3, 2))]})
    assert keys == [(1, 3, 5), (7,)]
    made = plan(layout, MRoPE())
    expected, following = stock_index(Qwen3VLModel, layout, frames_apart=True)
    assert torch.equal(made.positions[:, 0], expected)
    assert made.next_position == following


def test_text_after_a_long_video_does_not_overlap_it():
    """transformers goes on after max(h, w), whatever the length of the video; we do not."""
    layout = [Text(2), Video((9, 2, 2)), Text(2)]
    expected, _ = stock_index(Qwen2VLModel, layout)
    assert expected[-2, 0] < expected[:-2].max()
    made = plan(layout, MRoPE())
    assert torch.equal(made.positions[:-2, 0], expected[:-2])
    assert made.positions[-2, 0].tolist() == [11, 11, 11]


def test_time_stamps_stand_at_their_seconds():
    times = tuple(0.1 * n for n in range(10))
    made = plan([Video((10, 1, 1), times=times)], MRoPE(tokens_per_second=10))
    assert made.positions[:, 0, 0].tolist() == list(range(10))
    late = tuple(5 + 0.25 * n for n in range(4))
    exact = plan([Video((4, 1, 1), times=late)], MRoPE(tokens_per_second=2, whole=False))
    assert exact.positions[:, 0, 0].tolist() == [0, 0.5, 1, 1.5]


def test_time_scale_touches_the_time_axis_alone():
    layout = [Text(1), Video((4, 2, 2)), Text(1)]
    whole, half = plan(layout, MRoPE()), plan(layout, MRoPE(time_scale=0.5))
    assert torch.equal(half.positions[1:-1, 0, 1:], whole.positions[1:-1, 0, 1:])
    assert torch.equal(half.positions[1:-1, 0, 0] - 1, (whole.positions[1:-1, 0, 0] - 1) / 2)
    assert half.positions[-1, 0, 0] == 4


def test_experts_agree_on_one_canvas():
    coarse = plan([Image((2, 2))], MRoPE(canvas=(4, 4))).positions[:, 0, 1:]
    fine = plan([Image((4, 4))], MRoPE(canvas=(4, 4))).positions[:, 0, 1:].view(4, 4, 2)
    windows = fine.view(2, 2, 2, 2, 2).mean((1, 3)).view(4, 2)
    assert torch.equal(coarse, windows)


@pytest.mark.parametrize("span", [40, (3, 9, 9)])
def test_randomised_positions_are_sorted_and_in_range(span):
    scheme = Randomised(span)
    made = plan([Text(5), Video((2, 3, 4))], scheme, generator=torch.Generator().manual_seed(0))
    drawn = made.positions[5:, 0] - 5
    if isinstance(span, int):
        assert (drawn[:, 0].diff() > 0).all()
        assert drawn.max() < span
    else:
        grid = drawn.view(2, 3, 4, 3)
        for axis in range(3):
            line = grid[..., axis].movedim(axis, 0).flatten(1)
            assert (line.diff(dim=0) > 0).all()
            assert torch.equal(line, line[:, :1].expand_as(line))
            assert line.max() < span[axis]


def test_randomised_needs_room_and_a_generator():
    with pytest.raises(PositionError, match="12 of 11"):
        plan([Image((3, 4))], Randomised(11), generator=torch.Generator())
    with pytest.raises(PositionError, match="generator"):
        plan([Image((3, 4))], Randomised(20))


def test_schemes_mix_in_one_sequence():
    layout = [
        Text(2),
        Image((4, 4), scheme=Compact("row"), expert="sam"),
        Image((2, 2), expert="clip"),
        Video((2, 1, 2), scheme=MRoPE()),
        Text(1),
    ]
    made = plan(layout, V2PE(1 / 4))
    starts = [float(made.positions[int(low), 0, 0]) for low in made.bounds[:-1]]
    assert starts == [0, 2, 5.25, 7, 9]
    assert np.isclose(made.next_position, 10)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Compact("rows"),
        lambda: MRoPE(time_scale=-1),
        lambda: MRoPE(tokens_per_second=float("inf")),
        lambda: V2PE("auto"),
        lambda: V2PE(0.5, per="tile"),
    ],
)
def test_bad_schemes_are_refused(make):
    with pytest.raises(PositionError):
        make()
