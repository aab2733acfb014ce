"""Features of the encoder on disk: each collage is drawn and encoded once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.functional import normalize, to_tensor

from vlm.embedded.collage import Pictures, Split, draw, make_scene
from vlm.embedded.small import GRID, LAYERS
from vlm.experts import Expert

BATCH = 16


class Features:
    """A file of features, one row a scene, (256, width) bfloat16. Rows are appended in order."""

    def __init__(self, path: Path, width: int) -> None:
        self.path, self.shape = path, (GRID * GRID, width)
        self.row = 2 * GRID * GRID * width  # bytes

    def __len__(self) -> int:
        return self.path.stat().st_size // self.row if self.path.is_file() else 0

    def append(self, rows: Tensor) -> None:
        """Append (n, 256, width). A row that was cut off is overwritten."""
        with self.path.open("r+b" if self.path.is_file() else "w+b") as file:
            file.seek(len(self) * self.row)
            file.write(rows.bfloat16().contiguous().view(torch.int16).numpy().tobytes())

    def __getitem__(self, index: list[int]) -> Tensor:
        """Rows as (n, 256, width) bfloat16."""
        mapped = np.memmap(self.path, np.int16, "r", shape=(len(self), *self.shape))
        return torch.from_numpy(mapped[index]).view(torch.bfloat16)


def pixels_of(
    expert: Expert, pictures: Pictures, split: Split, seeds: Sequence[int]
) -> torch.Tensor:
    """(n, 3, 224, 224) normalised pixels of scenes."""
    pixels = [to_tensor(draw(make_scene(seed, split, pictures))) for seed in seeds]
    return normalize(torch.stack(pixels), expert.config.mean, expert.config.std)


@contextmanager
def read_blocks(expert: Expert, frozen: bool = True) -> Iterator[None]:
    """Inside, the encoder ends after the last block that is read, and is frozen or not."""
    config = expert.config
    stack: Any = expert.encoder.encoder
    layers, before = stack.layer, (config.scoring_layer, config.frozen)
    stack.layer = layers[: max(LAYERS)]
    config.scoring_layer, config.frozen = max(LAYERS) - 1, frozen
    try:
        yield
    finally:
        stack.layer, (config.scoring_layer, config.frozen) = layers, before


@torch.no_grad()
def write(
    file: Features, expert: Expert, pictures: Pictures, split: Split, count: int
) -> Iterator[int]:
    """Encode scenes until the file holds `count`; yields the number after each batch."""
    expert = expert.to(torch.bfloat16)
    with read_blocks(expert):
        while (start := len(file)) < count:
            seeds = range(start, min(start + BATCH, count))
            file.append(expert(pixels_of(expert, pictures, split, seeds), scores=False).features)
            yield len(file)
