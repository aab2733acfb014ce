"""LFM2-VL: SigLIP 2 on pictures of any shape, f x f rows shuffled into a token, short convolutions
in most decoder layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm.attention import AttentionReader, PaddedReader
from vlm.families.base import UnknownFamily
from vlm.families.clip import ClipHost
from vlm.families.internvl import shuffled
from vlm.inputs import VisualInput


class Lfm2VL(ClipHost):
    """`Lfm2VlForConditionalGeneration` with a dense decoder.

    Tiles stand between text of their own, so each is a visual input. A convolution looks back a few
    tokens of those that are left, in raster order.
    """

    name = "lfm2_vl"
    model_types = frozenset({"lfm2_vl"})
    packs = False  # a convolution would run on from one sample to the next

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        kinds = (self.config.vision_config.model_type, self.config.text_config.model_type)
        if kinds != ("siglip2_vision_model", "lfm2"):
            raise UnknownFamily(
                f"a {self.name} model of {kinds[0]!r} and {kinds[1]!r} is not known: expected "
                "'siglip2_vision_model' and 'lfm2'"
            )

    @property
    def norm(self) -> nn.Module:
        norm: nn.Module = self.language_model.embedding_norm
        return norm

    def attention_norm(self, layer: Any) -> nn.Module:
        norm: nn.Module = layer.operator_norm
        return norm

    def head_norms(self, attention: Any) -> tuple[nn.Module | None, nn.Module | None]:
        return attention.q_layernorm, attention.k_layernorm

    def reader(self, layer: Any) -> AttentionReader:
        return PaddedReader(layer.self_attn)

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        down = self.config.downsample_factor
        shapes = torch.as_tensor(call["spatial_shapes"]).tolist()
        return [VisualInput.plain((1, h // down, w // down), pooled=down**2) for h, w in shapes]

    def pool(self, inputs: Sequence[VisualInput], rows: Tensor) -> Tensor:
        return shuffled(inputs, rows, self.config.downsample_factor)

    def blank(self, kind: str) -> dict[str, Tensor]:
        side, vision = self.config.downsample_factor, self.config.vision_config
        width = vision.num_channels * vision.patch_size**2
        return {
            "pixel_values": torch.zeros(1, side**2, width),
            "spatial_shapes": torch.tensor([[side, side]]),
            "pixel_attention_mask": torch.ones(1, side**2, dtype=torch.int64),
        }
