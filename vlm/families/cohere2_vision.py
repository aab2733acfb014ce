"""Aya Vision and Command A Vision: SigLIP tiles, 2 x 2 rows shuffled into a token, sliding layers.

The decoder's layers of full attention rotate nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vlm.families.base import UnknownFamily
from vlm.families.clip import ClipHost
from vlm.families.internvl import shuffled
from vlm.families.rotation import rotate_neighbours
from vlm.inputs import VisualInput


class Cohere2Vision(ClipHost):
    """`Cohere2VisionForConditionalGeneration` and `AyaVisionForConditionalGeneration`.

    Tiles stand between text of their own, so each is a visual input.
    """

    name = "cohere2_vision"
    model_types = frozenset({"cohere2_vision", "aya_vision"})

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        kinds = (self.config.vision_config.model_type, self.config.text_config.model_type)
        if kinds != ("siglip_vision_model", "cohere2"):
            raise UnknownFamily(
                f"a {self.name} model of {kinds[0]!r} and {kinds[1]!r} is not known: expected "
                "'siglip_vision_model' and 'cohere2'"
            )

    def rotate(self, attention: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return x if attention.sliding_window is None else rotate_neighbours(x, cos, sin)

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        tiles, _, height, width = call["pixel_values"].shape
        down = self.config.downsample_factor
        patch = self.config.vision_config.patch_size * down
        return [VisualInput.plain((1, height // patch, width // patch), pooled=down**2)] * tiles

    def pool(self, inputs: Sequence[VisualInput], rows: Tensor) -> Tensor:
        return shuffled(inputs, rows, self.config.downsample_factor)
