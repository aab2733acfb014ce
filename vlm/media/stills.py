"""Videos made of pictures: a folder of images, or an animated GIF, PNG, WebP or AVIF."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from vlm.media.files import MediaError
from vlm.media.images import MAX_PIXELS, frame_to_rgb, open_image, read_image

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ppm"}
# Frames x canvas: a few kilobytes of GIF can take days to decode.
MAX_ANIMATION_PIXELS = 4_000_000_000
DEFAULT_STEP = 0.1  # seconds, for frames without a duration; what browsers do


class Folder:
    """The images of a folder in natural order of names (2 before 10), at an even rate."""

    def __init__(self, folder: Path, rate: float, short_side: int | None) -> None:
        try:
            files = [f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file()]
        except OSError as error:
            raise MediaError(folder, error.strerror or type(error).__name__) from error
        self._files = sorted((f for f in files if f.name[0] != "."), key=_natural)
        if not self._files:
            raise MediaError(folder, "the folder holds no image files")
        self._short_side = short_side
        self.fps, self.duration = rate, len(self._files) / rate
        self.times = np.arange(len(self._files)) / rate
        self.shape = self._frame(0).shape[:2]

    def read(self, indices: list[int]) -> Iterator[np.ndarray]:
        for index in indices:
            frame = self._frame(index)
            if frame.shape[:2] != self.shape:
                size = f"{frame.shape[1]} x {frame.shape[0]}"
                first = f"{self.shape[1]} x {self.shape[0]}, the size of {self._files[0].name}"
                raise MediaError(self._files[index], f"it is {size}, not {first}")
            yield frame

    def close(self) -> None:
        pass

    def _frame(self, index: int) -> np.ndarray:
        return _scaled(read_image(self._files[index]), self._short_side)


class Animation:
    """The frames of an animated image, at the times that its frame durations give.

    A still image is a video of one frame.
    """

    def __init__(self, path: Path, short_side: int | None) -> None:
        self._path, self._short_side = path, short_side
        self._image = open_image(path)
        try:
            steps = np.array([self._step(index) for index in range(self._count())])
            self.shape = self._frame(0).shape[:2]
        except BaseException:
            self.close()
            raise
        self.times = np.concatenate([[0.0], np.cumsum(steps)[:-1]])
        self.duration = float(steps.sum())
        self.fps = len(steps) / self.duration

    def read(self, indices: list[int]) -> Iterator[np.ndarray]:
        for index in indices:
            yield self._frame(index)

    def close(self) -> None:
        self._image.close()

    def _count(self) -> int:
        width, height = self._image.size
        try:
            count = int(getattr(self._image, "n_frames", 1))
        except Exception as error:  # Pillow's plugins raise whatever the broken field led to
            raise MediaError(self._path, f"damaged animation ({error})") from error
        if width * height > MAX_PIXELS or count * width * height > MAX_ANIMATION_PIXELS:
            size = f"{count} frames of {width} x {height}"
            raise MediaError(self._path, f"{size} are more than {MAX_ANIMATION_PIXELS} pixels")
        return count

    def _step(self, index: int) -> float:
        self._seek(index)
        milliseconds = self._image.info.get("duration") or 0
        return float(milliseconds) / 1000 if float(milliseconds) > 10 else DEFAULT_STEP

    def _frame(self, index: int) -> np.ndarray:
        self._seek(index)
        return _scaled(frame_to_rgb(self._image, str(self._path), MAX_PIXELS), self._short_side)

    def _seek(self, index: int) -> None:
        try:
            self._image.seek(index)
            self._image.load()
        except Exception as error:  # Pillow's plugins raise whatever the broken field led to
            raise MediaError(self._path, f"damaged in frame {index} ({error})") from error


def _natural(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts] + [
        (0, path.name)
    ]


def _scaled(image: Image.Image, short_side: int | None) -> np.ndarray:
    if short_side is not None and min(image.size) > short_side:
        scale = short_side / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.array(image)
