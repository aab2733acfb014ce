"""Clips that do not end: what is asked is what was shown."""

from __future__ import annotations

import pytest

from vlm.embedded.scenes import draw
from vlm.embedded.scenes.endless import MARKS, Endless


@pytest.mark.parametrize("seed", range(4))
def test_answers_follow_from_what_was_shown(seed: int) -> None:
    clip = Endless(seed, "val")
    seen: dict[str, list[int]] = {}
    colours: dict[str, str] = {}
    for minute, before in zip(MARKS[:3], (0, *MARKS), strict=False):
        for step in range(before * 6, minute * 6):
            items = clip.shown(step)
            assert 1 <= len(items) <= 2
            for item in items:
                seen.setdefault(item.shape, []).append(step)
                assert colours.setdefault(item.shape, item.colour) == item.colour
        now = {item.shape for item in clip.shown(minute * 6 - 1)}
        for question in clip.questions(minute):
            words = question.text.rstrip("?").replace(",", "").split()
            if question.category in ("now", "past"):
                assert colours[words[-1]] == question.answer
                assert (words[-1] in now) == (question.category == "now")
            elif question.category == "order":
                named = [word for word in words if word in seen]
                assert min(named, key=lambda shape: seen[shape][0]) == question.answer
            else:
                assert int(question.answer) == sum(colours[s] == words[2] for s in seen)
        past = [q for q in clip.questions(minute) if q.category == "past"]
        assert len(past) == MARKS.index(minute) + 1


def test_the_same_seed_draws_the_same() -> None:
    assert Endless(3).scene(5) == Endless(3).scene(5)
    assert Endless(3).scene(5) != Endless(4).scene(5)
    assert draw(Endless(3).scene(5)).size == (96, 96)
    with pytest.raises(ValueError, match="per_minute is 2"):
        Endless(0, per_minute=2)
    with pytest.raises(ValueError, match="minute is 5"):
        Endless(0).questions(5)
