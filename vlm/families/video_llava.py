"""Video-LLaVA: one CLIP tower for images, one for frames, whose class tokens go along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm.families.base import View, VisualInput
from vlm.families.llava import Llava
from vlm.families.taps import ProjectionTap, Tap


class VideoLlava(Llava):
    """`VideoLlavaForConditionalGeneration`.

    Each frame of a video is a class token and a square of cells; an image is the square alone.
    """

    name = "video_llava"
    resizes = False
    model_types = frozenset({"video_llava"})
    kinds = ("image", "video")
    media = (*Llava.media, "pixel_values_images")

    @property
    def cells(self) -> int | None:
        return None

    @property
    def tower(self) -> nn.Module:
        return self.core.image_tower

    def vision_layers(self, kind: str) -> Sequence[Any]:
        tower = self.core.image_tower if kind == "image" else self.core.video_tower
        return getattr(tower, "vision_model", tower).encoder.layers

    def tap(self, layer: Any) -> Tap:
        videos = any(layer is one for one in self.vision_layers("video"))
        return ProjectionTap(layer.self_attn, has_cls=True, keeps_cls=videos)

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        if kind == "video":
            videos, frames = call["pixel_values_videos"].shape[:2]
            return [self._video(frames)] * videos
        pixels = call.get("pixel_values", call.get("pixel_values_images"))
        return [VisualInput.plain((1, self.side, self.side))] * len(pixels)

    def _video(self, frames: int) -> VisualInput:
        every = torch.arange(frames * (self.side**2 + 1))
        cells = every.unflatten(0, (frames, -1))[:, 1:].flatten()
        view = View((frames, self.side, self.side), cells)
        planes = ((1, 1, 1), (1, self.side, self.side)) * frames
        return VisualInput(len(every), (view,), len(every), every, planes)

    def blank(self, kind: str) -> dict[str, Tensor]:
        size = self.config.vision_config.image_size
        if kind == "video":
            return {"pixel_values_videos": torch.zeros(1, 1, 3, size, size)}
        return {"pixel_values": torch.zeros(1, 3, size, size)}
