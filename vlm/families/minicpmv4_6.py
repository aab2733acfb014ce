"""MiniCPM-V 4.6: SigLIP on packed pictures of any shape, 2 x 2 rows merged within it and
after it, a Qwen3.5 decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlm.attention import AttentionReader, PackedReader
from vlm.families.base import ModelAdapter, UnknownFamily
from vlm.families.internvl import shuffled
from vlm.inputs import VisualInput


class MiniCPMV46(ModelAdapter):
    """`MiniCPMV4_6ForConditionalGeneration`.

    Slices of an image, and frames of a video, stand between text of their own, so each is a visual
    input. Scores are read after the merger within the encoder, where rows are those of its output.
    """

    name = "minicpmv4_6"
    packs = False  # a state would run on from one sample to the next
    model_types = frozenset({"minicpmv4_6"})
    kinds: ClassVar[tuple[str, ...]] = ("image", "video")

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        vision = self.config.vision_config
        sizes = tuple(vision.window_kernel_size), tuple(self.config.merge_kernel_size)
        if sizes != ((2, 2), (2, 2)) or vision.insert_layer_id + 1 >= vision.num_hidden_layers:
            raise UnknownFamily(
                f"window_kernel_size={sizes[0]}, merge_kernel_size={sizes[1]}, insert_layer_id="
                f"{vision.insert_layer_id} of {vision.num_hidden_layers} layers is not known: "
                "expected kernels of (2, 2), and layers after the one where rows are merged"
            )

    @property
    def vision_encoder(self) -> nn.Module:
        encoder: nn.Module = self.core.vision_tower
        return encoder

    def vision_layers(self, kind: str) -> Sequence[Any]:
        layers: Sequence[Any] = self.core.vision_tower.encoder.layers
        return layers

    def scoring_layer(self, kind: str, index: int | None) -> int:
        after = int(self.config.vision_config.insert_layer_id) + 1
        return max(super().scoring_layer(kind, index), after)

    def reader(self, layer: Any) -> AttentionReader:
        return PackedReader(layer.self_attn, turned=False)

    @property
    def down(self) -> int:
        """Rows of the encoder's output along each side of a token."""
        return 2 ** int(self.config.merger_times)

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        sizes = call["target_sizes" if kind == "image" else "target_sizes_videos"].tolist()
        within = 1 if (call.get("downsample_mode") or self.config.downsample_mode) == "4x" else 2
        patches = self.down * within
        times = 1 if kind == "image" else len(call["pixel_values_videos"])
        grids = [(1, height // patches, width // patches) for height, width in sizes] * times
        return [VisualInput.plain(grid, pooled=self.down**2) for grid in grids]

    def pool(self, inputs: Sequence[VisualInput], rows: Tensor) -> Tensor:
        return shuffled(inputs, rows, self.down)

    def blank(self, kind: str) -> dict[str, Tensor]:
        vision, side = self.config.vision_config, 2 * self.down
        pixels = torch.zeros(1, vision.num_channels, vision.patch_size, vision.patch_size * side**2)
        sizes = torch.tensor([[side, side]])
        if kind == "image":
            return {"pixel_values": pixels, "target_sizes": sizes}
        return {"pixel_values_videos": pixels, "target_sizes_videos": sizes}
