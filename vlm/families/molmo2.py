"""Molmo 2: a small view and overlapping crops; patches pooled by attention, features added to the
embeddings of placeholders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm.attention import AttentionReader, ProjectionReader, Segments, split_heads
from vlm.families.base import ModelAdapter, UnknownFamily
from vlm.inputs import View, VisualInput


class Molmo2(ModelAdapter):
    """`Molmo2ForConditionalGeneration` with a decoder as Qwen3's (4B, 8B).

    An image is two views: the whole, and its crops joined without their overlap. Tokens that end a
    row count as text. All images of a prompt, with the tokens around them, are one block of two-way
    attention, where the model is given `mm_token_type_ids`.
    """

    name = "molmo2"
    model_types = frozenset({"molmo2"})
    refuses: ClassVar[Mapping[str, str]] = {
        "video": "its frames have the placeholder of images in the prompt"
    }
    has_blocks = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        text, vision = self.config.text_config, self.config.vision_config
        scaled = set(text.rope_scaling_layers) >= set(range(text.num_hidden_layers))
        if text.norm_after or text.qk_norm_type != "qwen3" or not scaled:
            raise UnknownFamily(
                f"norm_after={text.norm_after}, qk_norm_type={text.qk_norm_type!r}, "
                f"rope_scaling_layers={text.rope_scaling_layers} is not known: expected False, "
                "'qwen3' and all layers"
            )
        if vision.num_key_value_heads != vision.num_attention_heads:
            raise UnknownFamily(
                f"num_key_value_heads={vision.num_key_value_heads} in the vision encoder is not "
                f"known: expected {vision.num_attention_heads}, one for each query head"
            )

    @property
    def vision_encoder(self) -> nn.Module:
        encoder: nn.Module = self.core.vision_tower
        return encoder

    def vision_layers(self, kind: str) -> Sequence[Any]:
        layers: Sequence[Any] = self.core.vision_tower.layers
        return layers

    def feature_layer(self, kind: str) -> int:
        depth = len(self.vision_layers(kind))
        return max(layer % depth for layer in self.config.adapter_config.vision_feature_layer)

    def reader(self, layer: Any) -> AttentionReader:
        return _Reader(layer.self_attn)

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        patches, start = call["pixel_values"].shape[-2], 0
        grids = torch.as_tensor(call["image_grids"]).tolist()
        counts = [low_h * low_w + h * w for low_h, low_w, h, w in grids]
        inputs = []
        index = torch.as_tensor(call["image_token_pooling"]).cpu()
        for (low_h, low_w, h, w), pooled in zip(grids, index.split(counts), strict=True):
            # The last patch of an image is in its last crop.
            rows = -(-(int(pooled.max()) + 1 - start) // patches) * patches
            low, high = torch.arange(len(pooled)).split([low_h * low_w, h * w])
            views = [View((1, low_h, low_w), low), View((1, h, w), high)]
            views = [view for view in views if len(view.indices)]
            # Rows may be parted by tokens that end them.
            planes = [(1, 1, low_w)] * low_h + [(1, 1, w)] * h
            local = torch.where(pooled < 0, -1, pooled - start)
            inputs.append(VisualInput(len(pooled), tuple(views), rows, None, tuple(planes), local))
            start += rows
        return inputs

    def pool(self, inputs: Sequence[VisualInput], rows: Tensor) -> Tensor:
        tokens = []
        for item, own in zip(inputs, rows.split([item.rows for item in inputs]), strict=True):
            index = item.note.to(rows.device)
            share = (index >= 0) / (index >= 0).sum(1, keepdim=True)
            patches = own[index.clamp(min=0)]
            share = share.to(rows.dtype).view(*index.shape, *[1] * (rows.ndim - 1))
            tokens.append((patches * share).sum(1))
        return torch.cat(tokens)

    def attention_blocks(self, ids: Tensor, media: Mapping[str, Any]) -> Tensor | None:
        types, count = media.get("mm_token_type_ids"), ids.shape[1]
        if types is None:
            return None
        # Candidates of assisted decoding come without types.
        types = functional.pad(types, (0, max(0, count - types.shape[1])))[:, -count:]
        return torch.where(types == 1, 0, -1)

    def blank(self, kind: str) -> dict[str, Tensor]:
        vision = self.config.vision_config
        width = vision.num_channels * vision.patch_size**2
        return {
            "pixel_values": torch.zeros(1, vision.num_position_embeddings, width),
            "image_token_pooling": torch.zeros(1, 1, dtype=torch.int64),
            "image_grids": torch.tensor([[1, 1, 0, 0]]),
        }


class _Reader(ProjectionReader):
    """Its attention names the number of heads and the scale otherwise."""

    def segments(self, values: Mapping[Any, Any], inputs: Sequence[VisualInput]) -> list[Segments]:
        """See `LayerReader.segments`."""
        heads = self.attention.config.num_attention_heads
        query, key = (split_heads(values[name], heads) for name in "qk")
        return [Segments(query, key, float(self.attention.scaling))]
