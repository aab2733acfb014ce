"""From pictures to the pixels of each expert: fit, tiles, resolution, normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor
from transformers.image_utils import PILImageResampling

from vlm.experts import ExpertConfig
from vlm.fusion import Pair

_RESAMPLE = {"bicubic": PILImageResampling.BICUBIC, "bilinear": PILImageResampling.BILINEAR}


@dataclass(frozen=True)
class View:
    """How pictures are prepared for one expert: the fields of `ExpertConfig` that pixels depend on.

    grid: (rows, columns) of tokens of one view.
    """

    name: str
    grid: Pair
    image_size: Pair
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: str
    resample: str
    max_tiles: int

    @classmethod
    def of(cls, settings: dict[str, Any]) -> View:
        """The view from a dict, as in the processor_config.json of a checkpoint."""
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()
        }
        return cls(**plain)

    @classmethod
    def for_expert(cls, expert: ExpertConfig, grid: Pair) -> View:
        """The view from the configuration of an expert and its grid of tokens."""
        names = ("name", "image_size", "mean", "std", "fit", "resample", "max_tiles")
        return cls.of({"grid": list(grid), **{k: expert.to_dict()[k] for k in names}})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def see(self, pictures: Sequence[Image.Image], tiled: bool = True) -> tuple[Tensor, list[Pair]]:
        """Views of RGB pictures, and the arrangement of each picture's tiles.

        Returns (views, 3, H, W) float32, for each picture the whole and then its tiles in raster
        order, and (down, across) for each picture, (1, 1) without tiles.
        """
        crops: list[Image.Image] = []
        shapes: list[Pair] = []
        for picture in pictures:
            shape = arrangement(picture, self.image_size, self.max_tiles) if tiled else (1, 1)
            shapes.append(shape)
            crops.append(self._padded(picture, self.image_size) if self.fit == "pad" else picture)
            if shape[0] * shape[1] > 1:
                crops += self._tiles(picture, shape)
        return self._pixels(crops), shapes

    def _pixels(self, crops: list[Image.Image]) -> Tensor:
        height, width = self.image_size
        whole = {"height": height, "width": width}
        crop = self.fit == "crop"
        processor = CLIPImageProcessor(
            size={"shortest_edge": max(height, width)} if crop else whole,
            do_center_crop=crop,
            crop_size=whole,
            image_mean=list(self.mean),
            image_std=list(self.std),
            resample=_RESAMPLE[self.resample],
        )
        pixels: Tensor = processor(images=crops, return_tensors="pt")["pixel_values"]
        return pixels.to(torch.float32)

    def _padded(self, picture: Image.Image, size: Pair) -> Image.Image:
        """Centre on the smallest canvas with the aspect ratio of `size`, filled with the mean."""
        width, height = picture.size
        tall = max(height, -(-width * size[0] // size[1]))
        wide = max(width, -(-height * size[1] // size[0]))
        if (wide, tall) == (width, height):
            return picture
        fill = tuple(int(255 * value) for value in self.mean)
        canvas = Image.new("RGB", (wide, tall), fill)
        canvas.paste(picture, ((wide - width) // 2, (tall - height) // 2))
        return canvas

    def _tiles(self, picture: Image.Image, shape: Pair) -> list[Image.Image]:
        height, width = self.image_size
        size = (shape[0] * height, shape[1] * width)
        whole = self._padded(picture, size) if self.fit == "pad" else picture
        whole = whole.resize((size[1], size[0]), _RESAMPLE[self.resample])
        return [
            whole.crop((left, top, left + width, top + height))
            for top in range(0, size[0], height)
            for left in range(0, size[1], width)
        ]


def arrangement(picture: Image.Image, size: Pair, most: int) -> Pair:
    """(down, across), at most `most` tiles of `size`, that fits a picture's shape and size best.

    Chosen as LLaVA-NeXT chooses its resolution: the arrangement that keeps most of the picture's
    pixels (scaled to fit, never up), and among equals the one with the fewest tiles.
    """
    width, height = picture.size
    best, best_tiles = -1, (1, 1)
    for down in range(1, most + 1):
        for across in range(1, most // down + 1):
            tall, wide = down * size[0], across * size[1]
            scale = min(tall / height, wide / width)
            kept = min(int(height * scale) * int(width * scale), height * width)
            # The fewest tiles of several equals come first in this order.
            if kept > best:
                best, best_tiles = kept, (down, across)
    return best_tiles
