"""What `push` is given, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from compress.errors import StreamError


def checked(
    frames: Any, times: Sequence[float] | float | None, last: float | None
) -> tuple[np.ndarray, list[float]]:
    """Frames (F, H, W, 3) uint8 and the seconds of each, after `last`.

    frames: an array of that shape or (H, W, 3), an object with `frames` and `timestamps` (as
    `vlm.Video`), a PIL image, or a list of arrays or images. times: None takes those of the video,
    or one second a frame. Raises StreamError for anything else.
    """
    if times is None and hasattr(frames, "timestamps"):
        times = list(frames.timestamps)
    given = _array(getattr(frames, "frames", frames))
    if times is None:
        begin = 0.0 if last is None else math.floor(last) + 1.0
        times = [begin + number for number in range(len(given))]
    seconds = [float(time) for time in np.atleast_1d(np.asarray(times, dtype=np.float64))]
    if len(seconds) != len(given):
        raise StreamError(f"times: {len(seconds)} for {len(given)} frames; expected one for each")
    before = -math.inf if last is None else last
    for time in seconds:
        if not (math.isfinite(time) and time > before):
            raise StreamError(
                f"times: a frame at {time:g} s follows one at {before:g} s; expected times that "
                "increase"
            )
        before = time
    return given, seconds


def _array(frames: Any) -> np.ndarray:
    wanted = "expected uint8 (frames, height, width, 3), or RGB pictures of one size"
    try:
        if isinstance(frames, list | tuple):
            frames = np.stack([np.asarray(frame) for frame in frames])
        given = np.asarray(frames)
    except (ValueError, TypeError, OSError) as error:
        raise StreamError(f"frames cannot be read ({error}): {wanted}") from error
    if given.ndim == 3:
        given = given[None]
    if given.dtype != np.uint8 or given.ndim != 4 or given.shape[3] != 3 or not given.size:
        raise StreamError(f"frames are {given.dtype} {given.shape}: {wanted}")
    return given
