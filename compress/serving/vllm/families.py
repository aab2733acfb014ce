"""The families that are served: where vLLM's models differ from those of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from compress.serving.vllm.encoder import EncoderAttentionReader
from vlm.attention import AttentionReader
from vlm.families.base import ModelAdapter, layer_of
from vlm.families.llava import Llava
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
                f"foveate: the method reads vision layer {wanted}, and vLLM builds {built} of "
                f"{self._depth}: those before the projector. Choose an option that reads one of them"
            )
        return wanted

    @property
    def _depth(self) -> int:
        return int(self.config.vision_config.num_hidden_layers)

    def reader(self, layer: Any) -> AttentionReader:
        return EncoderAttentionReader(layer.self_attn.attn, self.has_class_token, packed=False)
