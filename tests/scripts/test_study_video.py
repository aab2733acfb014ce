"""Stretched clips: the same questions, their frames in order, and empty frames between them."""

from __future__ import annotations

import numpy as np

from scripts.study_video import LongClip


def test_a_long_clip_shows_the_short_one_in_order() -> None:
    short, long = (LongClip(frames=frames, clips=1).load().samples for frames in (4, 16))
    assert [(s.key, s.prompt, s.answer) for s in short] == [
        (s.key, s.prompt, s.answer) for s in long
    ]
    whole, drawn_out = (samples[0].media[0].load() for samples in (short, long))
    assert len(whole) == 4 and len(drawn_out) == 16
    assert drawn_out.timestamps.tolist() == list(range(16))
    actual = [
        [k for k, frame in enumerate(drawn_out.frames) if np.array_equal(frame, wanted)]
        for wanted in whole.frames
    ]
    assert all(len(places) == 1 for places in actual)
    assert actual == sorted(actual)
    blank = {frame.tobytes() for frame in drawn_out.frames} - {f.tobytes() for f in whole.frames}
    assert len(blank) == 1
