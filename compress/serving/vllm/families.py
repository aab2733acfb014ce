"""The families that are served: where vLLM's models differ from those of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

from torch import Tensor

from compress.serving.vllm.encoder import EncoderAttentionReader
from vlm.attention import AttentionReader
from vlm.families.base import ModelAdapter
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


class ServedLlava(Served, Llava):
    """vLLM builds the vision encoder up to the layer whose output goes into the projector."""

    stock = "llava:LlavaForConditionalGeneration"

    def vision_layers(self, kind: str) -> Sequence[Any]:
        """Those that are built, and None for each of the others."""
        built = list(super().vision_layers(kind))
        return [*built, *[None] * (self.config.vision_config.num_hidden_layers - len(built))]

    def reader(self, layer: Any) -> AttentionReader:
        if layer is None:
            raise ValueError(
                "foveate: the method reads a layer of the vision encoder behind the one whose "
                "output the projector gets, and vLLM builds none of those. Choose a method or an "
                "option that reads an earlier layer"
            )
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


class ServedQwen25VL(ServedQwen2VL, Qwen2_5VL):
    """Qwen2.5-VL: windows in the vision encoder."""

    stock = "qwen2_5_vl:Qwen2_5_VLForConditionalGeneration"


class ServedQwen3VL(ServedQwen2VL, Qwen3VL):
    """Qwen3-VL: features of shallow vision layers follow the embeddings in further channels."""

    stock = "qwen3_vl:Qwen3VLForConditionalGeneration"
