"""VideoLLaMA 3: SigLIP under 2-D RoPE on packed pictures of any shape; frames of a video pooled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlm.attention import AttentionReader, PackedReader
from vlm.families.base import ModelAdapter, by_grid
from vlm.inputs import Grid, VisualInput


class VideoLlama3(ModelAdapter):
    """`VideoLlama3ForConditionalGeneration`.

    The encoder's rows come in groups of a token, tokens in raster order; the processor says how
    many rows a token has (1 in images, 2 x 2 in videos). Videos from which the processor has
    dropped tokens (`video_compression_mask`) are refused: they have fewer placeholders than tokens.
    """

    name = "video_llama_3"
    model_types = frozenset({"video_llama_3"})
    kinds: ClassVar[tuple[str, ...]] = ("image", "video")

    @property
    def vision_encoder(self) -> nn.Module:
        encoder: nn.Module = self.core.vision_model
        return encoder

    def vision_layers(self, kind: str) -> Sequence[Any]:
        layers: Sequence[Any] = self.core.vision_model.encoder.layers
        return layers

    def reader(self, layer: Any) -> AttentionReader:
        return PackedReader(layer.self_attn)

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        grids, sides = (call[f"{kind}_{name}"].tolist() for name in ("grid_thw", "merge_sizes"))
        pairs = zip(grids, sides, strict=True)
        return [VisualInput.plain((t, h // s, w // s), pooled=s**2) for (t, h, w), s in pairs]

    def pool(self, inputs: Sequence[VisualInput], rows: Tensor) -> Tensor:
        group = inputs[0].rows // inputs[0].count  # the same in all inputs of a kind

        def pool(part: Tensor, grid: Grid) -> Tensor:
            return part.unflatten(0, (-1, group)).mean(1)

        return by_grid(inputs, rows, pool)

    def blank(self, kind: str) -> dict[str, Tensor]:
        vision = self.config.vision_config
        name = "pixel_values" if kind == "image" else "pixel_values_videos"
        return {
            name: torch.zeros(4, vision.num_channels * vision.patch_size**2),
            f"{kind}_grid_thw": torch.tensor([[1, 2, 2]]),
            f"{kind}_merge_sizes": torch.tensor([2]),
        }
