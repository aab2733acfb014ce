"""PaddleOCR-VL: SigLIP under 2-D RoPE on packed patches in raster order, 2 x 2 a token, M-RoPE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlm.attention import AttentionReader, PackedReader
from vlm.families.internvl import shuffled
from vlm.families.qwen2_vl import Qwen2VL
from vlm.inputs import VisualInput


class PaddleOcrVL(Qwen2VL):
    """`PaddleOCRVLForConditionalGeneration`."""

    name = "paddleocr_vl"
    prunes_patches = False
    model_types = frozenset({"paddleocr_vl"})
    kinds: ClassVar[tuple[str, ...]] = ("image",)

    @property
    def merge(self) -> int:
        """See `Qwen2VL.merge`."""
        return int(self.config.vision_config.spatial_merge_size)

    def vision_layers(self, kind: str) -> Sequence[Any]:
        layers: Sequence[Any] = self.core.visual.vision_model.encoder.layers
        return layers

    def reader(self, layer: Any) -> AttentionReader:
        return PackedReader(layer.self_attn)

    def pool(self, inputs: Sequence[VisualInput], rows: Tensor) -> Tensor:
        return shuffled(inputs, rows, self.merge)

    def blank(self, kind: str) -> dict[str, Tensor]:
        vision = self.config.vision_config
        shape = (self.merge**2, vision.num_channels, vision.patch_size, vision.patch_size)
        grid = torch.tensor([[1, self.merge, self.merge]])
        return {"pixel_values": torch.zeros(shape), "image_grid_thw": grid}
