"""The families that are served: where vLLM's models differ from those of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from compress.serving.vllm.encoder import EncoderAttentionReader
from vlm.attention import AttentionReader
from vlm.families.base import ModelAdapter, layer_of
from vlm.families.internvl import InternVL
from vlm.families.llava import Llava
from vlm.families.llava_next import LlavaNext
from vlm.families.qwen2_5_vl import Qwen2_5VL
from vlm.families.qwen2_vl import Qwen2VL
from vlm.families.qwen3_vl import Qwen3VL
from vlm.inputs import VisualInput


class Served(ModelAdapter):
    """What the plugin asks of a family, besides what its adapter knows.

    stock: module and class of vLLM's model. axes: position axes of the language model.
    """

    stock: ClassVar[str]
    axes: ClassVar[int] = 1

    @property
    def core(self) -> Any:
        return self.model

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        return super().inputs(kind, call["kwargs"])  # type: ignore[safe-super]

    @staticmethod
    def places(is_visual: Tensor, data: Mapping[str, Any], config: Any) -> Tensor:
        """(L, axes) int64: where the L dense tokens of an image or video stand, from its start.

        is_visual: (L,) bool, False at text within it. data: its fields, as vLLM's processor made
        them. config: of the model.
        """
        return torch.arange(len(is_visual))[:, None]


class ServedLlava(Served, Llava):
    """vLLM builds the vision encoder up to the layer whose output goes into the projector."""

    stock = "llava:LlavaForConditionalGeneration"

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

    stock = "llava_next:LlavaNextForConditionalGeneration"

    def pack(self, tiles: list[Tensor], call: Mapping[str, Any], newline: Tensor) -> list[Tensor]:
        merge = type(self.core)._merge_image_patch_embeddings
        packing = SimpleNamespace(config=self.config, image_newline=newline)
        return [
            merge(packing, size, one, strategy="spatial_unpad")
            for size, one in zip(call["image_sizes"], tiles, strict=True)
        ]


class ServedInternVL(Served, InternVL):
    """InternVL: vLLM says which tiles make an image."""

    stock = "interns1:InternS1ForConditionalGeneration"

    def reader(self, layer: Any) -> AttentionReader:
        return EncoderAttentionReader(layer.attention.attn, has_class_token=True, packed=False)

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        tiles = iter(super().inputs(kind, call))
        counts = call["kwargs"]["image_num_patches"].flatten().tolist()
        return [VisualInput.join([next(tiles) for _ in range(count)]) for count in counts]

    def pool(self, inputs: Sequence[VisualInput], rows: Tensor) -> Tensor:
        each = [(view.grid, item.rows // item.count) for item in inputs for view in item.views]
        return super().pool([VisualInput.plain(*tile) for tile in each], rows)


class ServedQwen2VL(Served, Qwen2VL):
    """Qwen2-VL, and what its successors share: images and videos, three position axes."""

    stock = "qwen2_vl:Qwen2VLForConditionalGeneration"
    axes = 3

    def reader(self, layer: Any) -> AttentionReader:
        return EncoderAttentionReader(layer.attn.attn, has_class_token=False, packed=True)

    @staticmethod
    def places(is_visual: Tensor, data: Mapping[str, Any], config: Any) -> Tensor:
        vision = config.vision_config
        grid = data["image_grid_thw"] if "image_grid_thw" in data else data["video_grid_thw"]
        frames, height, width = (
            grid // torch.tensor([1, *[vision.spatial_merge_size] * 2])
        ).tolist()
        rate = getattr(vision, "tokens_per_second", None)  # of Qwen2.5-VL
        step = 1.0 if rate is None else rate * float(data.get("second_per_grid_ts", 1.0))
        kinds, lengths = is_visual.unique_consecutive(return_counts=True)
        at, parts = 0, []
        for visual, length in zip(kinds.tolist(), lengths.tolist(), strict=True):
            part = torch.arange(length)[:, None].expand(-1, 3)
            if visual:  # Qwen3-VL has a run of tokens for each frame
                count = frames // int(kinds.sum())
                sides = map(torch.arange, (count, height, width))
                part = torch.cartesian_prod(*sides)
                part[:, 0] = (part[:, 0] * step).long()
            parts.append(part + at)
            at = int(parts[-1].max()) + 1
        return torch.cat(parts)


class ServedQwen25VL(ServedQwen2VL, Qwen2_5VL):
    """Qwen2.5-VL: windows in the vision encoder."""

    stock = "qwen2_5_vl:Qwen2_5_VLForConditionalGeneration"


class ServedQwen3VL(ServedQwen2VL, Qwen3VL):
    """Qwen3-VL: features of shallow vision layers follow the embeddings in further channels."""

    stock = "qwen3_vl:Qwen3VLForConditionalGeneration"
