"""LLaVA-NeXT (1.6): a base view and a plane of crops, its rows parted by a learned newline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from vlm.families.llava import Llava
from vlm.inputs import View, VisualInput


class LlavaNext(Llava):
    """`LlavaNextForConditionalGeneration`.

    An image is two views: the whole at one tile's size, and the crops joined to one plane, cut to
    the picture's shape, with a newline after each row.
    """

    name = "llava_next"
    resizes = False
    videos_by_frame = False
    model_types = frozenset({"llava_next"})

    @property
    def image_tokens(self) -> int | None:
        return None

    def tiles(self, call: Mapping[str, Any]) -> list[int]:
        """Tiles of each image, the base view included."""
        size, pinpoints = self.config.vision_config.image_size, self.config.image_grid_pinpoints
        return [image_size_to_num_patches(one, pinpoints, size) for one in call["image_sizes"]]

    def pack(self, tiles: list[Tensor], call: Mapping[str, Any], newline: Tensor) -> list[Tensor]:
        """The model's own packing of (tiles, side * side, C) an image."""
        sizes, strategy = call["image_sizes"], self.config.vision_feature_select_strategy
        packed, _ = self.core.pack_image_features(tiles, sizes, strategy, image_newline=newline)
        return list(packed)

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        cells = self.side**2
        call = {**call, "image_sizes": torch.as_tensor(call["image_sizes"]).cpu()}
        tiles = self.tiles(call)
        # The rows' own numbers, packed as the model packs the rows.
        numbers = [torch.arange(float(n * cells)).reshape(n, cells, 1) for n in tiles]
        packed = self.pack(numbers, call, torch.tensor([-1.0]))
        return [
            self._input(source[:, 0].long(), n * cells)
            for source, n in zip(packed, tiles, strict=True)
        ]

    def _input(self, source: Tensor, rows: int) -> VisualInput:
        cells, every = self.side**2, torch.arange(len(source))
        views = [View((1, self.side, self.side), every[:cells])]
        planes = [views[0].grid]
        crops = source[cells:]
        if len(crops):
            width = int((crops < 0).nonzero()[0])
            height = len(crops) // (width + 1)
            planes.append((1, height, width + 1))
            if width:
                views.append(View((1, height, width), every[cells:][crops >= 0]))
        return VisualInput(len(source), tuple(views), rows, source, tuple(planes))

    def blank(self, kind: str) -> dict[str, Tensor]:
        size = self.config.vision_config.image_size
        sizes = torch.tensor([[size, size]])
        tiles = self.tiles({"image_sizes": sizes})[0]
        return {"pixel_values": torch.zeros(1, tiles, 3, size, size), "image_sizes": sizes}
