"""ERNIE 4.5 VL: Qwen2-VL's packed patches, a resampler, experts of their own for visual tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlm.families.qwen2_vl import Qwen2VL
from vlm.families.rotation import rotate_neighbours


class Ernie45VLMoe(Qwen2VL):
    """`Ernie4_5_VLMoeForConditionalGeneration`.

    Which experts a token has (`moe_mm_token_type_ids`) goes with it. Videos are refused.
    """

    name = "ernie4_5_vl_moe"
    prunes_patches = False
    model_types = frozenset({"ernie4_5_vl_moe"})
    kinds: ClassVar[tuple[str, ...]] = ("image",)
    refuses: ClassVar[Mapping[str, str]] = {
        "video": "its resampler joins every two frames, which the encoder does not hold together"
    }
    along = ("moe_mm_token_type_ids",)

    @property
    def vision_encoder(self) -> nn.Module:
        encoder: nn.Module = self.core.vision_tower
        return encoder

    @property
    def merge(self) -> int:
        """See `Qwen2VL.merge`."""
        return int(self.config.vision_config.spatial_merge_size)

    def vision_layers(self, kind: str) -> Sequence[Any]:
        layers: Sequence[Any] = self.core.vision_tower.blocks
        return layers

    def rotate(self, attention: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return rotate_neighbours(x, cos, sin)

    def token_types(self, ids: Tensor, visual: Tensor, said: Tensor) -> dict[str, Tensor]:
        config, types = self.config, visual.clone()
        for number, kind in enumerate(("image", "video"), start=1):
            for mark in ("start", "end"):
                types[ids == getattr(config, f"{kind}_{mark}_token_id")] = number
        return {"moe_mm_token_type_ids": types}

    def blank(self, kind: str) -> dict[str, Tensor]:
        vision = self.config.vision_config
        width = vision.in_channels * vision.patch_size**2
        grid = torch.tensor([[1, self.merge, self.merge]])
        return {"pixel_values": torch.zeros(self.group, width), "image_grid_thw": grid}
