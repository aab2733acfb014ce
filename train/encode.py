"""From a sample to the features of a model: media, token ids, and labels on answers only."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.utils.chat_template_utils import render_jinja_template

from train.samples import KINDS, Sample, SampleError
from vlm.media import inside, read_image, read_video
from vlm.model import FoveateProcessor

TEMPLATES = Path(__file__).parent / "templates"
IGNORED = -100
TOKENS = ("input_ids", "labels", "mm_token_type_ids")
Span = tuple[int, int]


@dataclass(frozen=True)
class Encoder:
    """Turns samples into features with a model's processor.

    Args:
        processor: the model's processor (`AutoProcessor`).
        media: the folder of images and videos.
        template, window, frames, fps, pad_to_square: see `train.recipe.Data`.
    """

    processor: Any
    media: Path | None = None
    template: str = "chat"
    window: int = 2048
    frames: int = 8
    fps: float | None = None
    pad_to_square: bool = False

    @cached_property
    def chat_template(self) -> str:
        """The Jinja source. Raises SampleError if "chat" is asked for and the model has none."""
        if self.template == "chat":
            own = self.processor.chat_template
            if not own:
                raise SampleError("data.template is 'chat' and the model has no chat template")
            return own
        shipped = TEMPLATES / f"{self.template}.jinja"
        return (shipped if shipped.is_file() else Path(self.template)).read_text(encoding="utf-8")

    @property
    def sees_video(self) -> bool:
        """Whether the model takes videos. For others, the frames of a video become images."""
        return self._own or getattr(self.processor, "video_processor", None) is not None

    @property
    def _own(self) -> bool:
        """Whether the processor is this package's, which takes `vlm.media.Video`."""
        return isinstance(self.processor, FoveateProcessor)

    def __call__(self, sample: Sample) -> dict[str, Any]:
        """Features of one sample.

        Returns:
            `input_ids` and `labels` (S,) int64, with labels -100 except on answers;
            `mm_token_type_ids` (S,), nonzero at visual tokens; the processor's outputs for the
            media; and `cut`, the number of tokens beyond the window.

        Raises:
            SampleError: the sample has no answer, or does not fit the window.
            MediaError: a file cannot be read.
        """
        messages, images, videos = self._messages(sample)
        text, spans = self.render(messages)
        media: dict[str, Any] = {"images": images} if images else {}
        if videos and self._own:
            media["videos"] = videos
        elif videos:
            media["videos"] = [video.frames for video in videos]
            media["video_metadata"] = [_metadata(video) for video in videos]
            media["do_sample_frames"] = False
        features = self._features(text, spans, media)
        return features | self._fit(*(features[name] for name in TOKENS))

    def _features(self, text: str, spans: list[Span], media: dict[str, Any]) -> dict[str, Any]:
        """The processor's outputs for a text and its media, with labels on the spans of answers."""
        bos = self.processor.tokenizer.bos_token
        out = self.processor(
            text=[text],
            add_special_tokens=not (bos and text.startswith(bos)),
            return_offsets_mapping=True,
            return_text_replacement_offsets=True,
            return_mm_token_type_ids=True,
            **media,
        )
        replaced = out.pop("text_replacement_offsets")[0]
        offsets = out.pop("offset_mapping")[0]
        out.pop("attention_mask")
        ids = torch.as_tensor(out.pop("input_ids")[0])
        kinds = torch.as_tensor(out.pop("mm_token_type_ids", [self._kinds(ids)])[0])
        if self._own and media.get("images") and "image_tiles" not in out:
            single_tiles = torch.ones(len(media["images"]), 2, dtype=torch.int64)
            many = isinstance(out["pixel_values"], dict)
            out["image_tiles"] = (
                dict.fromkeys(out["pixel_values"], single_tiles) if many else single_tiles
            )
        answer = in_spans(offsets, [shift(span, replaced) for span in spans])
        labels = torch.where(answer & (kinds == 0), ids, IGNORED)
        tokens = dict(zip(TOKENS, (ids, labels, kinds), strict=True))
        return tokens | {name: _tensor(value) for name, value in out.items()}

    def _kinds(self, ids: Tensor) -> Tensor:
        """(S,), 1 at tokens of images and 2 of videos, for processors that do not return it."""
        kinds = torch.zeros_like(ids)
        for number, kind in enumerate(KINDS, start=1):
            token = getattr(self.processor, f"{kind}_token", None)
            if token is not None:
                kinds[ids == self.processor.tokenizer.convert_tokens_to_ids(token)] = number
        return kinds

    def blank(self, kind: str) -> dict[str, Any]:
        """Features of a sample with one black input of `kind` and almost no text."""
        side = 224
        content = [{"type": kind}, {"type": "text", "text": "."}]
        answer = {"role": "assistant", "content": [{"type": "text", "text": "."}]}
        text, _ = self.render([{"role": "user", "content": content}, answer])
        media: dict[str, Any] = {"images": [Image.new("RGB", (side, side))]}
        if kind == "video":
            media = {"videos": [np.zeros((2, side, side, 3), dtype=np.uint8)]}
            if not self._own:
                media["do_sample_frames"] = False
        return self._features(text, [], media)

    def render(self, messages: list[dict[str, Any]]) -> tuple[str, list[Span]]:
        """The text of a conversation, and the spans of its answers in characters.

        Answers are what the template marks with {% generation %}. Without such marks, an answer is
        what its turn adds to the text that ends with the generation prompt.

        Raises SampleError for a template that changes earlier turns when later ones follow.
        """
        if "generation %}" in self.chat_template:
            text, spans = self._template(messages, spans=True)
            return text, [(first, last) for first, last in spans]
        text, _ = self._template(messages)
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, _ = self._template(messages[:number], prompt=True)
            after, _ = self._template(messages[: number + 1])
            if not (text.startswith(after) and after.startswith(before)):
                raise SampleError(
                    "this chat template changes earlier turns when later ones follow, so the "
                    "answers cannot be located: set data.template to a Jinja file that marks them "
                    "with {% generation %}"
                )
            # White space that the template writes between turns is not part of the answer.
            spans.append((len(before), len(after.rstrip())))
        return text, spans

    def _template(
        self, messages: list[dict[str, Any]], prompt: bool = False, spans: bool = False
    ) -> tuple[str, list[Any]]:
        result: Any = render_jinja_template(
            conversations=[messages],
            chat_template=self.chat_template,
            add_generation_prompt=prompt,
            return_assistant_tokens_mask=spans,
            **self.processor.tokenizer.special_tokens_map,
        )
        rendered, generation_spans = result
        return rendered[0], generation_spans[0] if generation_spans else []

    def _messages(self, sample: Sample) -> tuple[list[dict[str, Any]], list[Any], list[Any]]:
        """Messages in the form of chat templates, and the images and videos in order."""
        messages, images, videos = [], [], []
        for role, parts in sample.messages:
            content: list[dict[str, str]] = []
            for kind, value in parts:
                if kind == "text":
                    content.append({"type": "text", "text": value})
                elif kind == "image":
                    images.append(self._square(read_image(self._path(value))))
                    content.append({"type": "image"})
                else:
                    video = self._video(value)
                    if self.sees_video:
                        videos.append(video)
                        content.append({"type": "video"})
                    else:
                        images += [self._square(Image.fromarray(frame)) for frame in video.frames]
                        content += [{"type": "image"}] * len(video)
            messages.append({"role": role, "content": content})
        return messages, images, videos

    def _path(self, name: str) -> Path:
        if self.media is None:
            raise SampleError(f"it names {name!r}, but no folder of media is given (--media)")
        try:
            return inside(self.media, name)
        except ValueError as error:
            raise SampleError(str(error)) from error

    def _video(self, name: str) -> Any:
        if self.fps is None:
            return read_video(self._path(name), frames=self.frames)
        return read_video(self._path(name), fps=self.fps, max_frames=self.frames)

    def _square(self, image: Image.Image) -> Image.Image:
        side = max(image.size)
        if not self.pad_to_square or image.size == (side, side):
            return image
        mean = tuple(round(255 * part) for part in self.processor.image_processor.image_mean)
        square = Image.new("RGB", (side, side), mean)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return square

    def _fit(self, ids: Tensor, labels: Tensor, kinds: Tensor) -> dict[str, Any]:
        """Cut to the window. Only text at the end may be lost, and not every answer."""
        length, window = len(ids), self.window
        if not bool((labels != IGNORED).any()):
            raise SampleError("the answers have no tokens, so there is nothing to learn")
        if length > window:
            if bool(kinds[window:].any()):
                raise SampleError(
                    f"it has {length} tokens and the window is {window}: visual tokens would be cut"
                )
            if not bool((labels[:window] != IGNORED).any()):
                raise SampleError(
                    f"it has {length} tokens and the window is {window}: no answer would be left"
                )
        return {
            "input_ids": ids[:window],
            "labels": labels[:window],
            "mm_token_type_ids": kinds[:window],
            "cut": max(0, length - window),
        }


def shift(span: Span, replaced: list[dict[str, Any]]) -> Span:
    """A span of the rendered text, moved to its place after placeholders were expanded."""
    ends = [expansion["span"][1] for expansion in replaced]
    gained = [0] + [expansion["new_span"][1] - expansion["span"][1] for expansion in replaced]
    first, last = (char + gained[bisect.bisect_right(ends, char)] for char in span)
    return first, last


def in_spans(offsets: list[Span], spans: list[Span]) -> Tensor:
    """Which tokens overlap one of the spans, (S,) bool."""
    inside_one = torch.zeros(len(offsets), dtype=torch.bool)
    starts, ends = torch.as_tensor(offsets).reshape(-1, 2).unbind(1)
    for first, last in spans:
        inside_one |= (starts < last) & (ends > first)
    return inside_one


def _tensor(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tensor(part) for name, part in value.items()}
    if isinstance(value, Tensor):
        return value
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return torch.stack(value)
    return torch.as_tensor(value)


def _metadata(video: Any) -> dict[str, Any]:
    return {
        "total_num_frames": round(video.duration * video.fps),
        "fps": video.fps,
        "frames_indices": video.indices.tolist(),
    }
