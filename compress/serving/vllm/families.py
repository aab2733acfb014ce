"""The families that are served: where vLLM's models differ from those of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from compress.serving.vllm.encoder import EncoderAttentionReader
from vlm.attention import AttentionReader
from vlm.families.base import ModelAdapter, layer_of
from vlm.families.llava import Llava
from vlm.families.llava_next import LlavaNext
from vlm.families.qwen2_5_vl import Qwen2_5VL
from vlm.families.qwen2_vl import Qwen2VL
from vlm.families.qwen3_vl import Qwen3VL
from vlm.inputs import VisualInput


class Served(ModelAdapter):
    """What the plugin asks of a family, besides what its adapter knows.

    axes: position axes of the language model.
    """

    axes: ClassVar[int] = 1

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        return super().inputs(kind, call["kwargs"])  # type: ignore[safe-super]

    @staticmethod
    def span(data: Mapping[str, Any], count: int, config: Any) -> int:
        """The positions that a dense image takes: the text after it stands so far from its start.

        data: the image's fields, as vLLM's processor made them. count: its dense tokens. config: of
        the model.
        """
        return count

    def places(self, item: VisualInput) -> Tensor:
        """(N, axes) int64: where the dense tokens of an image stand, from its start."""
        return torch.arange(item.count)[:, None]


class ServedLlava(Served, Llava):
    """vLLM builds the vision encoder up to the layer whose output goes into the projector."""

    def feature_layer(self, kind: str) -> int:
        return layer_of(self.config.vision_feature_layer, self._depth)

    def scoring_layer(self, kind: str, index: int | None) -> int:
        if index is None:
            return self.feature_layer(kind)
        wanted = min(max(index + self._depth if index < 0 else index, 0), self._depth - 1)
        built = len(self.vision_layers(kind))
        if wanted >= built:
            raise ValueError(
                f"foveate: the method reads vision layer {wanted}, and vLLM builds the first "
                f"{built} of {self._depth}. Choose an option that reads one of those"
            )
        return wanted

    @property
    def _depth(self) -> int:
        return int(self.config.vision_config.num_hidden_layers)

    def reader(self, layer: Any) -> AttentionReader:
        return EncoderAttentionReader(layer.self_attn.attn, self.has_class_token, packed=False)


class ServedLlavaNext(ServedLlava, LlavaNext):
    """LLaVA-NeXT. vLLM packs tiles by a function of its own."""

    def pack(self, tiles: list[Tensor], call: Mapping[str, Any], newline: Tensor) -> list[Tensor]:
        merge = self.core.merge_tiles
        packing = SimpleNamespace(config=self.config, image_newline=newline)
        return [
            merge(packing, size, one, strategy="spatial_unpad")
            for size, one in zip(call["image_sizes"], tiles, strict=True)
        ]


class ServedQwen(Served, Qwen2VL):
    """Qwen2-VL, and what its successors share: images only, three position axes."""

    axes = 3

    def reader(self, layer: Any) -> AttentionReader:
        return EncoderAttentionReader(layer.attn.attn, has_class_token=False, packed=True)

    @staticmethod
    def span(data: Mapping[str, Any], count: int, config: Any) -> int:
        side = config.vision_config.spatial_merge_size
        frames, height, width = data["image_grid_thw"].tolist()
        return max(frames, height // side, width // side)

    def places(self, item: VisualInput) -> Tensor:
        return torch.cartesian_prod(*(torch.arange(length) for length in item.grid))


class ServedQwen25(ServedQwen, Qwen2_5VL):
    """Qwen2.5-VL: windows in the vision encoder."""


class ServedQwen3(ServedQwen, Qwen3VL):
    """Qwen3-VL: features of shallow vision layers follow the embeddings in further channels."""
