"""Gemma 3: SigLIP, mean pooling, two-way attention within an image, sliding layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vlm.families.clip import ClipHost
from vlm.families.internvl import shuffled
from vlm.inputs import VisualInput


class Gemma3(ClipHost):
    """`Gemma3ForConditionalGeneration`.

    All images have the same number of tokens; those of pan and scan are images of their own. With
    `token_type_ids`, the tokens of an image attend to each other in both directions.
    """

    name = "gemma3"
    model_types = frozenset({"gemma3"})
    has_blocks = True

    @property
    def side(self) -> int:
        """Tokens along each side of an image."""
        return int(self.config.mm_tokens_per_image**0.5)

    @property
    def down(self) -> int:
        """Patches along each side of a token."""
        vision = self.config.vision_config
        return int(vision.image_size // vision.patch_size) // self.side

    @property
    def image_tokens(self) -> int | None:
        return self.side**2

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        grid = (1, self.side, self.side)
        return [VisualInput.plain(grid, pooled=self.down**2)] * len(call["pixel_values"])

    def pool(self, inputs: Sequence[VisualInput], rows: Tensor) -> Tensor:
        return shuffled(inputs, rows, self.down)

    def token_types(self, ids: Tensor, visual: Tensor, said: Tensor) -> dict[str, Tensor]:
        return {"token_type_ids": (visual == 1).long()}

    def attention_blocks(self, ids: Tensor, media: Mapping[str, Any]) -> Tensor | None:
        types = media.get("token_type_ids")
        return None if types is None else runs(types[:, -ids.shape[1] :] == 1)


def runs(marked: Tensor) -> Tensor:
    """(B, S) int64: the number of the run of marked columns that each column is in, -1 elsewhere.

    marked: (B, S) bool.
    """
    begins = marked & ~functional.pad(marked, (1, 0))[:, :-1]
    return torch.where(marked, begins.cumsum(1) - 1, -1)
