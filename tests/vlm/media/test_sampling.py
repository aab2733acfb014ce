"""Sampling rules: which frames of a video are taken."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm.media import sample_indices


def test_rules_by_hand() -> None:
    def pick(total: int, frames: int, sampling: str) -> list[int]:
        return sample_indices(total, frames, sampling=sampling).tolist()

    assert pick(10, 2, "uniform") == [2, 7]
    assert pick(10, 3, "uniform") == [1, 5, 8]
    assert pick(100, 4, "uniform") == [12, 37, 62, 87]
    assert pick(10, 3, "linspace") == [0, 4, 9]
    assert pick(10, 1, "linspace") == [0]
    assert pick(10, 3, "vlmevalkit") == [2, 5, 7]


@settings(deadline=None)
@given(total=st.integers(1, 3000), frames=st.integers(1, 400))
def test_rules_against_their_formulas(total: int, frames: int) -> None:
    picked = {s: sample_indices(total, frames, sampling=s) for s in ("uniform", "linspace")}
    picked["vlmevalkit"] = sample_indices(total, frames, sampling="vlmevalkit")
    for indices in picked.values():
        assert indices.dtype == np.int64
        assert len(indices) == min(total, frames)
        assert (np.diff(indices) > 0).all()
        assert 0 <= indices[0] <= indices[-1] < total
    if frames <= total:
        n, ks = frames, range(frames)
        assert picked["uniform"].tolist() == [int((k + 0.5) * total / n) for k in ks]
        assert picked["vlmevalkit"].tolist() == [(k + 1) * total // (n + 1) for k in ks]
        ends = picked["linspace"]
        # NumPy's own falls one short where rounding puts a whole number just below itself.
        own = np.linspace(0, total - 1, n, dtype=int)
        assert np.abs(ends - own).max() <= 1


@settings(deadline=None)
@given(
    changes=st.lists(st.floats(0, 1e6), min_size=1, max_size=200),
    frames=st.integers(1, 60),
)
def test_adaptive_gives_distinct_rising_frames(changes: list[float], frames: int) -> None:
    indices = sample_indices(len(changes), frames, sampling="adaptive", changes=np.array(changes))
    assert len(indices) == min(frames, len(changes))
    assert (np.diff(indices) > 0).all()
    assert 0 <= indices[0] <= indices[-1] < len(changes)


def test_adaptive_follows_change() -> None:
    still = np.zeros(100)
    uniform = sample_indices(100, 10).tolist()
    assert sample_indices(100, 10, sampling="adaptive", changes=still).tolist() == uniform
    busy = still.copy()
    busy[50:70] = 3.0
    picked = sample_indices(100, 10, sampling="adaptive", changes=busy)
    inside = ((picked >= 50) & (picked < 70)).sum()
    assert inside == 6  # half of the mass, and a fifth of the other half
    cut = still.copy()
    cut[40] = 100.0
    picked = sample_indices(100, 10, sampling="adaptive", changes=cut)
    assert 40 in picked
    assert np.diff(picked).max() < 15  # one frame's mass is capped: the rest stay spread


def test_fps_goes_by_time_not_by_count() -> None:
    times = np.concatenate([np.arange(10) * 0.1, 1 + np.arange(10) * 0.5])  # 10 fps, then 2
    picked = sample_indices(20, fps=2, times=times)
    assert times[picked].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5]
    assert sample_indices(20, fps=1000, times=times).tolist() == list(range(20))
    assert sample_indices(20, fps=1e-6, times=times).tolist() == [0]
    # float32 time stamps that fall a hair short of the wanted time still count.
    rough = (np.arange(50) / 25).astype(np.float32).astype(np.float64)
    assert sample_indices(50, fps=5, times=rough).tolist() == list(range(0, 50, 5))
    assert sample_indices(50, fps=5, times=rough, max_frames=5).tolist() == [5, 15, 25, 35, 45]
    assert sample_indices(3, fps=10, times=np.zeros(3)).tolist() == [2]


def test_a_last_frame_that_is_held_is_seen() -> None:
    times = np.array([0.0, 1.0])
    assert sample_indices(2, fps=1, times=times, duration=10.0).tolist() == [0, 1]
    assert sample_indices(2, fps=0.6, times=times, duration=2.0).tolist() == [0, 1]


def test_all_frames_are_thinned_only_on_request() -> None:
    assert sample_indices(7).tolist() == list(range(7))
    assert sample_indices(7, max_frames=2).tolist() == [1, 5]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"total": 0}, "total=0"),
        ({"frames": 0}, "frames=0"),
        ({"frames": -3}, "frames=-3"),
        ({"max_frames": 0}, "max_frames=0"),
        ({"frames": 4, "max_frames": 3}, "more than max_frames=3"),
        ({"frames": 4, "fps": 1.0}, "give one of them"),
        ({"sampling": "random"}, "sampling='random'"),
        ({"sampling": "fps"}, "needs fps"),
        ({"sampling": "adaptive"}, "needs frames"),
        ({"sampling": "adaptive", "fps": 1.0}, "needs frames"),
        ({"sampling": "adaptive", "frames": 2}, "needs changes"),
        ({"sampling": "adaptive", "frames": 2, "changes": np.ones(3)}, r"shape \(3,\)"),
        ({"sampling": "adaptive", "frames": 2, "changes": -np.ones(9)}, "not negative"),
        ({"fps": 1.0}, "needs times"),
        ({"fps": 0.0, "times": np.arange(9)}, "fps=0.0"),
        ({"fps": float("nan"), "times": np.arange(9)}, "fps=nan"),
        ({"fps": 1.0, "times": np.arange(8)}, r"shape \(8,\)"),
        ({"fps": 1.0, "times": -np.arange(9)}, "do not fall"),
    ],
)
def test_bad_arguments_of_sampling(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sample_indices(**({"total": 9} | arguments))  # type: ignore[arg-type]


def test_counts_must_be_whole() -> None:
    with pytest.raises(TypeError, match=r"frames=2\.0"):
        sample_indices(9, 2.0)  # type: ignore[arg-type]
