"""Features of the frozen encoder on disk: each collage is drawn and encoded once."""

from __future__ import annotations

from collections.abc import Iterator
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


@torch.no_grad()
def write(
    file: Features, expert: Expert, pictures: Pictures, split: Split, count: int
) -> Iterator[int]:
    """Encode scenes until the file holds `count`; yields the number after each batch."""
    deepest = max(LAYERS)
    expert = expert.to(torch.bfloat16)
    stack: Any = expert.encoder.encoder
    layers = stack.layer
    stack.layer = layers[:deepest]  # what comes after is not read
    expert.config.scoring_layer = deepest - 1
    try:
        while (start := len(file)) < count:
            seeds = range(start, min(start + BATCH, count))
            pixels = [to_tensor(draw(make_scene(seed, split, pictures))) for seed in seeds]
            batch = normalize(torch.stack(pixels), expert.config.mean, expert.config.std)
            file.append(expert(batch, scores=False).features)
            yield len(file)
    finally:
        stack.layer = layers
