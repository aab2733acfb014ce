"""Video-LLaVA: one CLIP encoder for images, one for frames, whose class tokens are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm.attention import AttentionReader, ProjectionReader
from vlm.families.llava import Llava
from vlm.inputs import View, VisualInput


class VideoLlava(Llava):
    """`VideoLlavaForConditionalGeneration`.

    Each frame of a video is a class token and a square of patches; an image is the square alone.
    """

    name = "video_llava"
    resizes = False
    videos_by_frame = False
    model_types = frozenset({"video_llava"})
    kinds = ("image", "video")
    media = (*Llava.media, "pixel_values_images")

    @property
    def image_tokens(self) -> int | None:
        return None

    @property
    def vision_encoder(self) -> nn.Module:
        return self.core.image_tower

    def vision_layers(self, kind: str) -> Sequence[Any]:
        encoder = self.core.image_tower if kind == "image" else self.core.video_tower
        return getattr(encoder, "vision_model", encoder).encoder.layers

    def reader(self, layer: Any) -> AttentionReader:
        videos = any(layer is one for one in self.vision_layers("video"))
        return ProjectionReader(layer.self_attn, True, keeps_class_token=videos)

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        if kind == "video":
            videos, frames = call["pixel_values_videos"].shape[:2]
            return [self._video(frames)] * videos
        pixels = call.get("pixel_values", call.get("pixel_values_images"))
        return [VisualInput.plain((1, self.side, self.side))] * len(pixels)

    def _video(self, frames: int) -> VisualInput:
        tokens = torch.arange(frames * (self.side**2 + 1))
        patches = tokens.unflatten(0, (frames, -1))[:, 1:].flatten()
        view = View((frames, self.side, self.side), patches)
        planes = ((1, 1, 1), (1, self.side, self.side)) * frames
        return VisualInput(len(tokens), (view,), len(tokens), tokens, planes)

    def blank(self, kind: str) -> dict[str, Tensor]:
        size = self.config.vision_config.image_size
        if kind == "video":
            return {"pixel_values_videos": torch.zeros(1, 1, 3, size, size)}
        return {"pixel_values": torch.zeros(1, 3, size, size)}
