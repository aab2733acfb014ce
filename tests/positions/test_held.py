"""Positions of a stream without gaps."""

from __future__ import annotations

import torch

from positions import Held, compact
from positions.held import aligned


def held(steps: list[int], home: list[list[float]], advance: list[float], **axes: bool) -> Held:
    places = torch.tensor(home, dtype=torch.float64)
    numbers = torch.tensor(advance, dtype=torch.float64)
    return Held(torch.tensor(steps), places, places, numbers, **axes)


def video(kept: list[int], cells: int = 2) -> Held:
    """A video under M-RoPE after three tokens of text: steps at 2 positions a step."""
    steps, home, advance = [-1] * 3, [[t] * 3 for t in (0.0, 1.0, 2.0)], [0.0] * 3
    for step in kept:
        steps += [step] * cells
        home += [[3.0 + 2 * step, 3.0, 3.0 + cell] for cell in range(cells)]
        advance += [2.0 if step else 0.0] * cells
    return held(steps, home, advance, time_axis=True, one_axis=False)


def test_a_time_axis_closes_up_and_keeps_the_rest() -> None:
    whole = video([0, 1, 2, 3])
    assert torch.equal(compact(whole), whole.home)
    cut = video([0, 2, 5])
    now = compact(cut)
    assert now[3::2, 0].tolist() == [3, 5, 7]
    assert torch.equal(now[:, 1:], cut.home[:, 1:])
    assert compact(video([4, 5]))[3::2, 0].tolist() == [3, 5]
    assert torch.equal(compact(video([])), video([]).home)


def test_steps_with_words_move_as_a_whole() -> None:
    # Each step: one word, then a grid of 1 x 2; it takes up 3 positions.
    def stamped(kept: list[int]) -> Held:
        steps, home = [-1], [[0.0] * 3]
        for step in kept:
            at = 1.0 + 3 * step
            steps += [step] * 3
            home += [[at] * 3, [at + 1] * 3, [at + 1, at + 1, at + 2]]
        advance = [0.0, *([3.0] * 3 * len(kept))]
        return held(steps, home, advance, time_axis=False, one_axis=False)

    assert torch.equal(compact(stamped([0, 1, 2])), stamped([0, 1, 2]).home)
    assert torch.equal(compact(stamped([0, 4, 6])), stamped([0, 1, 2]).home)


def test_one_axis_is_numbered_and_keeps_fractions() -> None:
    home = [[t] * 3 for t in (0.0, 1.0, 1.25, 1.5, 7.0, 7.25)]
    one = held([-1, -1, 0, 0, 3, 3], home, [0.0] * 6, time_axis=False, one_axis=True)
    assert compact(one)[:, 0].tolist() == [0, 1, 1.25, 1.5, 2.5, 2.75]


def test_groups_meet_at_the_newest_token() -> None:
    first, second = video([0, 2, 5]), video([4, 5])
    placed = aligned([first, second])
    assert torch.equal(placed[0][-1], placed[1][-1])
    assert placed[0][3::2, 0].tolist() == [3, 5, 7]
    assert placed[1][3::2, 0].tolist() == [5, 7]
    assert torch.equal(placed[1][:3], second.home[:3])
