"""Granite 4 Vision: LLaVA-NeXT's views, windows of rows queried for tokens; features of several
vision layers are added to empty placeholders before several decoder layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from vlm.families.base import UnknownFamily, layer_of
from vlm.families.internvl import shuffled
from vlm.families.llava_next import LlavaNext
from vlm.inputs import VisualInput


class Granite4Vision(LlavaNext):
    """`Granite4VisionForConditionalGeneration`.

    Methods look at the features that are added first, and merge these; of the features that follow,
    a merged token gets the mean of its members'.
    """

    name = "granite4_vision"
    model_types = frozenset({"granite4_vision"})
    injects = ("vision_mask", "deepstack_features")
    enters_empty = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        config = self.config
        layers = [layer for _, layer in config.deepstack_layer_map]
        layers += config.spatial_target_layers
        late = [layer for layer in layers if layer >= len(self.layers)]
        if late or Fraction(config.downsample_rate).numerator != 1:
            raise UnknownFamily(
                f"downsample_rate={config.downsample_rate!r} and features before decoder layers "
                f"{sorted(layers)} of {len(self.layers)} is not known: expected a rate of one over "
                "a whole number, and layers that there are"
            )

    @property
    def down(self) -> int:
        """Patches along each side of a token."""
        return Fraction(self.config.downsample_rate).denominator

    @property
    def side(self) -> int:
        """Tokens along each side of a tile."""
        return super().side // self.down

    def feature_layer(self, kind: str) -> int:
        first, _ = min(self.config.deepstack_layer_map, key=lambda pair: pair[1])
        return layer_of(first, len(self.vision_layers(kind)))

    def projector_input(self, kind: str) -> nn.Module | None:
        return None

    def pack(self, tiles: list[Tensor], call: Mapping[str, Any], newline: Tensor) -> list[Tensor]:
        sizes, strategy = call["image_sizes"], self.config.vision_feature_select_strategy
        return list(self.core.pack_image_features(tiles, sizes, strategy, image_newline=newline))

    def _input(self, source: Tensor, rows: int) -> VisualInput:
        one = super()._input(source, rows)
        patches = rows * self.down**2
        return VisualInput(one.count, one.views, patches, None, one.planes, note=source)

    def pool(self, inputs: Sequence[VisualInput], rows: Tensor) -> Tensor:
        tile = VisualInput.plain((1, self.side, self.side), pooled=self.down**2)
        means, start, tokens = shuffled([tile] * (len(rows) // tile.rows), rows, self.down), 0, []
        for item in inputs:
            source = item.note.to(rows.device)
            own = means[source.clamp(min=0) + start]
            tokens.append(own.masked_fill((source < 0).view(-1, *[1] * (rows.ndim - 1)), 0))
            start += item.rows // self.down**2
        return torch.cat(tokens)

    def features_of(self, output: Any) -> Sequence[Tensor] | None:
        layers = getattr(output, "deepstack_features", None)
        if layers is None:
            return None
        by_layer: dict[int, Sequence[Tensor]] = dict(layers)
        return by_layer[min(by_layer)]

    def received(self, output: Any) -> list[Tensor]:
        return [x for _, features in output.deepstack_features for x in features]
