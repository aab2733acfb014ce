"""Prepares pictures, videos and text for the model, for training, evaluation and inference."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, LlavaProcessor, PreTrainedTokenizerBase, ProcessorMixin

from vlm import media
from vlm.fusion import image_blocks, video_blocks
from vlm.model.configuration import FoveateConfig
from vlm.model.templates import FLATTEN, TEMPLATES
from vlm.model.views import View


class FoveateInputs(BatchFeature):
    """The inputs of the model; `to` moves and casts the pixels of each expert too."""

    def to(self, *args: Any, **kwargs: Any) -> FoveateInputs:
        nested = {k: BatchFeature(v).to(*args, **kwargs) for k, v in self.items() if _is_dict(v)}
        super().to(*args, **kwargs)
        self.data.update({name: dict(value) for name, value in nested.items()})
        return self


class FoveateProcessor(ProcessorMixin):
    """Prepares inputs of a `FoveateForConditionalGeneration`.

        inputs = processor(images=photo, text="<image>\\nWhat is it?")
        inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True)

    views: a `View` (or its dict) for each expert, in order.
    template: "plain", "v1", or "llm" for that of the tokenizer; `chat_template` (jinja) overrides.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        views: Sequence[View | Mapping[str, Any]],
        template: str = "v1",
        chat_template: str | None = None,
        image_token: str = "<image>",
        video_token: str = "<video>",
    ) -> None:
        self.seen = [v if isinstance(v, View) else View.of(dict(v)) for v in views]
        self.views = [view.to_dict() for view in self.seen]
        if not self.views:
            raise ValueError("views is empty: expected one for each expert")
        if template not in (*TEMPLATES, "llm"):
            raise ValueError(f"template={template!r}: expected 'plain', 'v1' or 'llm'")
        if image_token not in tokenizer.get_vocab():
            raise ValueError(
                f"the tokenizer has no token {image_token!r}: expected one that vlm.model.assemble "
                "has seen"
            )
        self.template = template
        self.image_token, self.video_token = image_token, video_token
        own: Any = getattr(tokenizer, "chat_template", None)
        usual = TEMPLATES.get(template) or (own and FLATTEN + own)
        super().__init__(tokenizer, chat_template=chat_template or usual)

    @classmethod
    def for_model(
        cls, config: FoveateConfig, tokenizer: PreTrainedTokenizerBase, **kwargs: Any
    ) -> FoveateProcessor:
        """The processor of a model with this configuration; kwargs as above."""
        grids = config.token_grids()
        views = [View.for_expert(e, grids[e.name]) for e in config.expert_configs]
        return cls(tokenizer, views, **kwargs)

    @classmethod
    def from_llava(cls, processor: LlavaProcessor, config: FoveateConfig) -> FoveateProcessor:
        """The processor of a stock LLaVA, for the model that `from_llava` made of it."""
        (expert,) = config.expert_configs
        images = processor.image_processor
        bilinear = int(images.resample) == 2
        crop = bool(images.do_center_crop)
        expert.fit = "crop" if crop else "squash"
        expert.resample = "bilinear" if bilinear else "bicubic"
        expert.mean, expert.std = list(images.image_mean), list(images.image_std)
        view = View.for_expert(expert, config.token_grids()[expert.name])
        template: Any = processor.chat_template
        return cls(processor.tokenizer, [view], chat_template=template)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> FoveateInputs:
        """Text with its placeholders expanded, and the pixels for each expert.

        images: one, a flat list in the order of the placeholders, or a list of lists (one a text):
            anything that `vlm.media.read_image` reads.
        text: one or several, with one <image> for each image and one <video> for each video.
        videos: likewise; a video is what `vlm.read_video` returns, its path, a list of frames, or
            an array (frames, H, W, 3).
        kwargs: to the tokenizer (padding=True, padding_side="right", ...).

        Returns input_ids, attention_mask, pixel_values and pixel_values_videos (a tensor for one
        expert, else a dict by expert), and image_tiles, video_frames and video_times where needed.
        Raises ValueError if placeholders and visual inputs differ in number.
        """
        if text is None and images is None and videos is None:
            raise ValueError("expected text, images or videos, got none of them")
        if kwargs.get("truncation"):
            raise ValueError(
                "truncation=True would cut placeholders off; shorten the text or the number of "
                "visual inputs instead"
            )
        texts = [text] if isinstance(text, str) else None if text is None else list(text)
        pictures = _flat(images, _is_image, texts, self.image_token)
        data, image_tokens = self._images([media.read_image(picture) for picture in pictures])
        more, video_tokens = self._videos(_flat(videos, _is_video, texts, self.video_token))
        data |= more
        if texts is not None:
            expanded, offsets = self.get_text_with_replacements(
                texts,
                [self.image_token * count for count in image_tokens],
                [self.video_token * count for count in video_tokens],
            )
            with_offsets = kwargs.pop("return_text_replacement_offsets", False)
            kwargs = {"padding": len(texts) > 1, **kwargs}
            data |= self.tokenizer(expanded, return_tensors=return_tensors, **kwargs)
            if with_offsets:
                data["text_replacement_offsets"] = offsets
        return FoveateInputs(data)

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """As ProcessorMixin's; with return_assistant_tokens_mask=True, tokenize=True and
        return_dict=True the result has assistant_masks (B, S), 1 on answers."""
        if self.chat_template is None:
            raise ValueError(
                "template='llm', and this tokenizer has no chat template of its own: expected "
                "'plain', 'v1' or a chat_template"
            )
        out = super().apply_chat_template(conversation, *args, **kwargs)
        if isinstance(out, BatchFeature) and "assistant_masks" in out:
            out["assistant_masks"] = torch.as_tensor(out["assistant_masks"])
        return out

    def _images(self, pictures: list[Image.Image]) -> tuple[dict[str, Any], list[int]]:
        if not pictures:
            return {}, []
        pixels, tiles = {}, {}
        for view in self.seen:
            pixels[view.name], shapes = view.see(pictures)
            tiles[view.name] = torch.tensor(shapes)
        grids = {view.name: view.grid for view in self.seen}
        counts = []
        for index in range(len(pictures)):
            shapes_of = {name: tuple(shape[index].tolist()) for name, shape in tiles.items()}
            counts.append(sum(block.tokens for block in image_blocks(grids, shapes_of)))
        data: dict[str, Any] = {"pixel_values": self._packed(pixels)}
        if any(bool((shape > 1).any()) for shape in tiles.values()):
            data["image_tiles"] = self._packed(tiles)
        return data, counts

    def _videos(self, videos: list[Any]) -> tuple[dict[str, Any], list[int]]:
        if not videos:
            return {}, []
        read = [_frames(video) for video in videos]
        frames = [media.read_image(frame) for images, _ in read for frame in images]
        pixels = {view.name: view.see(frames, tiled=False)[0] for view in self.seen}
        lengths = [len(images) for images, _ in read]
        grids = {view.name: view.grid for view in self.seen}
        counts = [sum(b.tokens for b in video_blocks(grids, count)) for count in lengths]
        data = {
            "pixel_values_videos": self._packed(pixels),
            "video_frames": torch.tensor(lengths),
        }
        times = [seconds for _, seconds in read if seconds is not None]
        if len(times) == len(read):
            data["video_times"] = torch.from_numpy(np.concatenate(times))
        return data, counts

    def _packed(self, parts: dict[str, Tensor]) -> Any:
        return parts if len(parts) > 1 else next(iter(parts.values()))


def _is_dict(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_image(value: Any) -> bool:
    return not isinstance(value, list | tuple)


def _is_video(value: Any) -> bool:
    """Whether this is one video, such as a list of frames, and not a list of videos."""
    if not isinstance(value, list | tuple):
        return True
    first = value[0] if value else None
    return isinstance(first, Image.Image) or (isinstance(first, np.ndarray) and first.ndim < 4)


def _flat(value: Any, is_one: Any, texts: list[str] | None, token: str) -> list[Any]:
    """Visual inputs in one list. Checks their number against placeholders, in all or by text."""
    groups = [] if value is None else [value] if is_one(value) else list(value)
    nested = bool(groups) and not any(is_one(group) for group in groups)
    flat = [item for group in groups for item in group] if nested else groups
    if texts is None:
        return flat
    wanted = [text.count(token) for text in texts]
    given = [len(group) for group in groups] if nested else [len(flat)]
    if given != (wanted if nested else [sum(wanted)]):
        raise ValueError(
            f"the texts hold {wanted} placeholders {token} and {given if nested else len(flat)} "
            "inputs were given for them: expected one placeholder for each, in order"
        )
    return flat


def _frames(video: Any) -> tuple[Sequence[Any], np.ndarray | None]:
    """The frames of a video, and their time stamps in seconds if it has any."""
    if isinstance(video, str | os.PathLike):
        video = media.read_video(video)
    times = getattr(video, "timestamps", None)
    frames = video.frames if times is not None else video
    if len(frames) == 0:
        raise ValueError("a video without frames: expected one frame or more")
    return frames, None if times is None else np.asarray(times, dtype=np.float64)
