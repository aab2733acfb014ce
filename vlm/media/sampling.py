"""Which frames of a video to sample: a pure function of counts and times."""

from __future__ import annotations

import math

import numpy as np

SAMPLINGS = ("uniform", "fps", "adaptive", "linspace", "vlmevalkit")
# Time stamps from containers may have passed through float32, so "not later than t" needs slack.
TIME_SLACK = 1e-3


def sample_indices(
    total: int,
    frames: int | None = None,
    *,
    sampling: str = "uniform",
    fps: float | None = None,
    times: np.ndarray | None = None,
    duration: float | None = None,
    changes: np.ndarray | None = None,
    max_frames: int | None = None,
) -> np.ndarray:
    """Indices of the frames to keep out of `total`, strictly increasing: int64 (F,).

    N is `frames` and L is `total`. With N >= L every rule gives all L frames.

    - "uniform": the centres of N equal segments, floor((k + 1/2) * L / N), k = 0..N-1.
    - "linspace": both ends included, floor(k * (L - 1) / (N - 1)), k = 0..N-1; 0 for N = 1.
    - "vlmevalkit": floor(k * L / (N + 1)), k = 1..N, as the VLMEvalKit benchmarks do (where
      N > L, they repeat frames; here they do not).
    - "fps": at times[0] + k / fps, k = 0, 1, ... before `duration` (in seconds from times[0]),
      the last frame whose time is not later. A rate above the video's own gives each frame once.
    - "adaptive": more frames where the picture changes more. `changes[i]` >= 0 is the change from
      frame i - 1 to frame i (changes[0] is not read). Each frame gets the mass
      m_i = 1/2 * 1/L + 1/2 * changes[i] / sum(changes), capped at 1/N with the surplus spread
      over the others in proportion; kept are the first frames where the running sum of m
      exceeds (k + 1/2) / N, k = 0..N-1 (without any change: the uniform rule). The cap
      keeps a hard cut from being selected twice.

    With neither `frames` nor `fps`, all frames. If `fps` or "all" gives more than `max_frames`, the
    uniform rule reduces them to `max_frames`.

    Args:
        times: seconds, nondecreasing, float (total,); needed by "fps". Without it the rules count
            frames, so that in a video of variable frame rate they are uneven in time.
        duration: seconds; for "fps", by default to the last frame's time.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    _check_count("total", total)
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling={sampling!r}: expected one of {', '.join(SAMPLINGS)}")
    for name, count in (("frames", frames), ("max_frames", max_frames)):
        if count is not None:
            _check_count(name, count)
    if frames is not None and fps is not None:
        raise ValueError(f"frames={frames} and fps={fps}: give one of them")
    if frames is not None and max_frames is not None and frames > max_frames:
        raise ValueError(f"frames={frames} is more than max_frames={max_frames}")
    if sampling == "fps" and fps is None:
        raise ValueError("sampling='fps' needs fps, in frames per second")
    if sampling not in ("fps", "uniform") and frames is None:
        raise ValueError(f"sampling={sampling!r} needs frames, a count")

    if fps is not None:
        kept = _at_rate(total, fps, times, duration)
    elif frames is None or frames >= total:
        kept = np.arange(total, dtype=np.int64)
    elif sampling == "adaptive":
        return _adaptive(total, frames, changes)
    else:
        return _evenly(total, frames, sampling)
    if max_frames is not None and len(kept) > max_frames:
        kept = kept[_evenly(len(kept), max_frames, "uniform")]
    return kept


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}={value!r}: expected an int")
    if value < 1:
        raise ValueError(f"{name}={value}: expected at least 1")


def _evenly(total: int, frames: int, sampling: str) -> np.ndarray:
    # Integer arithmetic throughout: k * (L - 1) / (N - 1) in floats can fall below a whole number.
    k = np.arange(frames, dtype=np.int64)
    if sampling == "uniform":
        return (2 * k + 1) * total // (2 * frames)
    if sampling == "linspace":
        return k * (total - 1) // max(frames - 1, 1)
    return (k + 1) * total // (frames + 1)


def _at_rate(
    total: int, fps: float, times: np.ndarray | None, duration: float | None
) -> np.ndarray:
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps={fps}: expected a positive number of frames per second")
    if times is None:
        raise ValueError("fps needs times, the frames' time stamps in seconds")
    times = np.asarray(times, dtype=np.float64)
    if times.shape != (total,):
        raise ValueError(f"times has shape {times.shape}: expected ({total},)")
    if not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise ValueError("times: expected finite seconds that do not fall")
    last = float(times[-1] - times[0])
    end = last if duration is None else max(float(duration) - TIME_SLACK, last)
    # With a rate far above that of the video, each frame once is enough.
    steps = np.diff(times)
    shortest = float(steps[steps > 0].min()) if (steps > 0).any() else math.inf
    if 1 / fps < shortest and 1 / fps < TIME_SLACK:
        return np.arange(total, dtype=np.int64)
    wanted = times[0] + np.arange(math.floor(end * fps) + 1) / fps
    return np.unique(np.searchsorted(times, wanted + TIME_SLACK, side="right") - 1).astype(np.int64)


def _adaptive(total: int, frames: int, changes: np.ndarray | None) -> np.ndarray:
    if changes is None:
        raise ValueError("sampling='adaptive' needs changes, one number for each frame")
    changes = np.array(changes, dtype=np.float64)
    if changes.shape != (total,):
        raise ValueError(f"changes has shape {changes.shape}: expected ({total},)")
    changes[0] = 0
    if not np.isfinite(changes).all() or (changes < 0).any():
        raise ValueError("changes: expected finite numbers, not negative")
    mass = np.full(total, 1 / total)
    if changes.sum() > 0:
        mass = 0.5 * mass + 0.5 * changes / changes.sum()
    capped = np.zeros(total, dtype=bool)
    while (over := (mass > 1 / frames) & ~capped).any():
        capped |= over
        mass[capped] = 1 / frames
        free = ~capped
        mass[free] *= (1 - capped.sum() / frames) / mass[free].sum()
    reached = np.cumsum(mass)
    wanted = (np.arange(frames) + 0.5) / frames + 1e-9  # sums that should be equal exceed it
    picked = np.minimum(np.searchsorted(reached, wanted, side="right"), total - 1)
    # Rounding at the cap can still put two targets on one frame: move the later one on.
    for k in range(1, frames):
        picked[k] = max(picked[k], picked[k - 1] + 1)
    return np.minimum(picked, np.arange(total - frames, total)).astype(np.int64)
