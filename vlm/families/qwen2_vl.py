"""Qwen2-VL: an encoder of any resolution on packed patches, 2 x 2 of them merged, M-RoPE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from vlm.attention import AttentionReader, FusedReader
from vlm.families.base import ModelAdapter
from vlm.families.packed import some_cells
from vlm.inputs import FrameLayout, VisualInput


class Qwen2VL(ModelAdapter):
    """`Qwen2VLForConditionalGeneration`.

    The encoder's rows come in groups of `spatial_merge_size` squared, one group a token, tokens in
    raster order. A frame (two pictures of a video) attends within itself.
    """

    name = "qwen2_vl"
    model_types = frozenset({"qwen2_vl"})
    kinds: ClassVar[tuple[str, ...]] = ("image", "video")
    prunes_patches = True

    @property
    def vision_encoder(self) -> nn.Module:
        return self.core.visual

    @property
    def merge(self) -> int:
        """Rows of the encoder along each side of a token."""
        return int(self.core.visual.spatial_merge_size)

    @property
    def group(self) -> int:
        """Rows of the encoder in a token."""
        return self.merge**2

    def vision_layers(self, kind: str) -> Sequence[Any]:
        return self.core.visual.blocks

    def reader(self, layer: Any) -> AttentionReader:
        return FusedReader(layer.attn)

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        side = self.merge
        grids = call[f"{kind}_grid_thw"].tolist()
        return [VisualInput.plain((t, h // side, w // side), self.group) for t, h, w in grids]

    def pool(self, inputs: Sequence[VisualInput], rows: Tensor) -> Tensor:
        return rows.unflatten(0, (-1, self.group)).mean(1)

    def cells(self, pixels: Tensor) -> Tensor:
        return pixels.unflatten(0, (-1, self.group)).flatten(1)

    def some_cells(self, kept: Tensor) -> AbstractContextManager[None]:
        return some_cells(self.core.visual, kept)

    def chunk_positions(self, ids: Tensor, mask: Tensor, media: Mapping[str, Any]) -> Tensor | None:
        """See `ModelAdapter.chunk_positions`.

        Reads `mm_token_type_ids` (its last S columns), `image_grid_thw`, `video_grid_thw` and, for
        models that count seconds, `second_per_grid_ts`. None without the first or without grids,
        as the stock model then places all tokens as text.
        """
        names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
        given = {name: media[name] for name in names if media.get(name) is not None}
        types = media.get("mm_token_type_ids")
        if types is None or not given.keys() & {"image_grid_thw", "video_grid_thw"}:
            return None
        # On the host, where the stock function reads grids one number at a time. A row of padding
        # alone, which that function refuses, is placed as text.
        real = mask.cpu() | ~mask.cpu().any(1, keepdim=True)
        given = {name: torch.as_tensor(value).cpu() for name, value in given.items()}
        positions, _ = self.core.get_rope_index(
            ids.cpu(),
            mm_token_type_ids=types[:, -ids.shape[1] :].cpu(),
            attention_mask=real,
            **given,
        )
        positions = positions.permute(1, 2, 0).double() * mask.cpu()[..., None]
        return positions.to(ids.device)

    def blank(self, kind: str) -> dict[str, Tensor]:
        vision, side = self.config.vision_config, self.merge
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        name = "pixel_values" if kind == "image" else "pixel_values_videos"
        grid = torch.tensor([[1, side, side]])
        return {name: torch.zeros(self.group, width), f"{kind}_grid_thw": grid}

    @property
    def frame_layout(self) -> FrameLayout | None:
        if "video" not in self.kinds:
            return None
        vision = self.config.vision_config
        rate = getattr(vision, "tokens_per_second", None)
        return FrameLayout("video", vision.temporal_patch_size, rate=rate, clears_time=False)

    def frames_call(self, processor: Any, frames: np.ndarray) -> tuple[str, dict[str, Any]]:
        call = processor.video_processor(
            videos=[torch.from_numpy(frames).permute(0, 3, 1, 2)],
            do_sample_frames=False,
            return_tensors="pt",
        )
        return "video", {name: call[name] for name in ("pixel_values_videos", "video_grid_thw")}
