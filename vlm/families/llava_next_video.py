"""LLaVA-NeXT-Video: LLaVA-NeXT for images; the rows of a video's frames are pooled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm.families.base import UnknownFamily
from vlm.families.internvl import shuffled
from vlm.families.llava_next import LlavaNext
from vlm.inputs import VisualInput


class LlavaNextVideo(LlavaNext):
    """`LlavaNextVideoForConditionalGeneration`."""

    name = "llava_next_video"
    model_types = frozenset({"llava_next_video"})
    kinds = ("image", "video")

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        mode, stride = self.config.spatial_pool_mode, self.config.spatial_pool_stride
        if mode != "average" or self.side % stride:
            raise UnknownFamily(
                f"spatial_pool_mode={mode!r} with stride {stride} on {self.side} patches a side is "
                "not known: expected 'average' and a stride that divides the side"
            )

    def projector_input(self, kind: str) -> nn.Module | None:
        return super().projector_input(kind) if kind == "image" else None

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        if kind == "image":
            return super().inputs(kind, call)
        videos, frames = call["pixel_values_videos"].shape[:2]
        stride = self.config.spatial_pool_stride
        side = self.side // stride
        return [VisualInput.plain((frames, side, side), pooled=stride**2)] * videos

    def pool(self, inputs: Sequence[VisualInput], rows: Tensor) -> Tensor:
        if inputs[0].source is not None:
            return super().pool(inputs, rows)
        return shuffled(inputs, rows, self.config.spatial_pool_stride)

    def blank(self, kind: str) -> dict[str, Tensor]:
        if kind == "image":
            return super().blank(kind)
        size = self.config.vision_config.image_size
        return {"pixel_values_videos": torch.zeros(1, 1, 3, size, size)}
