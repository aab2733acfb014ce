"""LLaVA-OneVision: SigLIP tiles packed as in LLaVA-NeXT, or shrunk to a budget; pooled videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vlm.families.llava_next import LlavaNext, image_size_to_num_patches
from vlm.inputs import View, VisualInput


class LlavaOnevision(LlavaNext):
    """`LlavaOnevisionForConditionalGeneration`.

    Crops of a large image are resampled, and so are a video's frames, so tokens are mixtures of the
    encoder's rows: merging follows the projector. Several images in a prompt are one tile each.
    """

    name = "llava_onevision"
    model_types = frozenset({"llava_onevision"})
    kinds = ("image", "video")

    def projector_input(self, kind: str) -> nn.Module | None:
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
        sizes = torch.as_tensor(call["image_sizes"]).cpu()
        aspect = {"vision_aspect_ratio": call.get("vision_aspect_ratio")}
        notes = [{"image_sizes": size[None], **aspect} for size in sizes]
        inputs = super().inputs(kind, call)
        return [
            replace(item, source=None, note=note) for item, note in zip(inputs, notes, strict=True)
        ]

    def _video(self, frames: int) -> VisualInput:
        side = (self.side + 1) // 2
        grid = (frames, side, side)
        cells = frames * side * side
        view = View(grid, torch.arange(cells))
        return VisualInput(cells + 1, (view,), frames * self.side**2, None, (grid, (1, 1, 1)))

    def pool(self, inputs: Sequence[VisualInput], rows: Tensor) -> Tensor:
        flat = rows.flatten(1) if rows.ndim > 1 else rows[:, None]
        if inputs[0].note is None:  # videos of one call have the same number of frames
            tiles = flat.unflatten(0, (-1, self.side**2))
            cells = self.core.apply_pooling(tiles).reshape(len(inputs), -1, flat.shape[1])
            tokens = nn.functional.pad(cells, (0, 0, 0, 1)).flatten(0, 1)
        else:
            newline = flat.new_zeros(flat.shape[1])
            parts = zip(inputs, flat.split([item.rows for item in inputs]), strict=True)
            tiled = [(item.note, part.unflatten(0, (-1, self.side**2))) for item, part in parts]
            tokens = torch.cat([self.pack([part], note, newline)[0] for note, part in tiled])
        return tokens.reshape(-1, *rows.shape[1:])

    def blank(self, kind: str) -> dict[str, Tensor]:
        if kind == "video":
            size = self.config.vision_config.image_size
            return {"pixel_values_videos": torch.zeros(1, 1, 3, size, size)}
        return super().blank(kind)
