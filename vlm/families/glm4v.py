"""GLM-4.1V, 4.5V, 4.6V and GLM-OCR: Qwen2-VL's packed patches, 2 x 2 of them convolved, M-RoPE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from vlm.families.qwen2_vl import Qwen2VL
from vlm.families.rotation import rotate_neighbours


class Glm4v(Qwen2VL):
    """`Glm4vForConditionalGeneration` and its kin.

    Videos are refused.
    """

    name = "glm4v"
    model_types = frozenset({"glm4v", "glm4v_moe", "glm46v", "glm_ocr"})
    kinds: ClassVar[tuple[str, ...]] = ("image",)
    refuses: ClassVar[Mapping[str, str]] = {
        "video": "its frames have the placeholder of images in the prompt"
    }

    def rotate(self, attention: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if self.config.text_config.model_type in ("glm4v_text", "glm_ocr_text"):
            return rotate_neighbours(x, cos, sin)
        return super().rotate(attention, x, cos, sin)
