"""LLaVA-OneVision: SigLIP tiles packed as in LLaVA-NeXT, or shrunk to a budget; pooled videos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vlm.families.base import View, VisualInput
from vlm.families.llava_next import LlavaNext, image_size_to_num_patches


class LlavaOnevision(LlavaNext):
    """`LlavaOnevisionForConditionalGeneration`.

    Crops of a large image are resampled, and so are a video's frames, so cells are mixtures of the
    tower's rows: merging follows the projector. Several images in a prompt are one tile each.
    """

    name = "llava_onevision"
    model_types = frozenset({"llava_onevision"})
    kinds = ("image", "video")

    def merge_point(self, kind: str) -> nn.Module | None:
        return None

    def tiles(self, call: Mapping[str, Any]) -> list[int]:
        size, pinpoints = self.config.vision_config.image_size, self.config.image_grid_pinpoints
        numbers, sizes = call.get("batch_num_images"), call["image_sizes"]
        cut = [True] * len(sizes)
        if numbers is not None:
            cut = [n == 1 for n in torch.as_tensor(numbers).tolist() for _ in range(n)]
        return [
            image_size_to_num_patches(one, pinpoints, size) if whole else 1
            for one, whole in zip(sizes, cut, strict=False)
        ]

    def pack(self, tiles: list[Tensor], call: Mapping[str, Any], newline: Tensor) -> list[Tensor]:
        aspect = call.get("vision_aspect_ratio") or self.config.vision_aspect_ratio
        packed, _ = self.core.pack_image_features(
            tiles, call["image_sizes"], image_newline=newline, vision_aspect_ratio=aspect
        )
        return list(packed)

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        if kind == "video":
            videos, frames = call["pixel_values_videos"].shape[:2]
            return [self._video(frames)] * videos
        found = super().inputs(kind, call)
        notes = [{**call, "image_sizes": one[None]} for one in torch.as_tensor(call["image_sizes"])]
        return [
            replace(item, source=None, note=note) for item, note in zip(found, notes, strict=True)
        ]

    def _video(self, frames: int) -> VisualInput:
        side = (self.side + 1) // 2
        grid = (frames, side, side)
        cells = frames * side * side
        view = View(grid, torch.arange(cells))
        return VisualInput(cells + 1, (view,), frames * self.side**2, None, (grid, (1, 1, 1)))

    def pool(self, item: VisualInput, rows: Tensor) -> Tensor:
        tiles = rows.unflatten(0, (-1, self.side**2))
        if item.note is None:
            cells = self.core.apply_pooling(tiles).flatten(0, 1)
            return torch.cat([cells, cells.new_zeros(1, cells.shape[1])])
        return self.pack([tiles], item.note, rows.new_zeros(rows.shape[1]))[0]

    def blank(self, kind: str) -> dict[str, Tensor]:
        if kind == "video":
            size = self.config.vision_config.image_size
            return {"pixel_values_videos": torch.zeros(1, 1, 3, size, size)}
        return super().blank(kind)
