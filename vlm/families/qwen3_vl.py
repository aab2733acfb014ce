"""Qwen3-VL: Qwen2-VL's encoder with DeepStack, interleaved M-RoPE, frames parted by text."""

from __future__ import annotations

from vlm.families.qwen2_vl import Qwen2VL
from vlm.inputs import FrameLayout


class Qwen3VL(Qwen2VL):
    """`Qwen3VLForConditionalGeneration` and its mixture of experts.

    Features of shallow vision layers are added to the visual tokens after the first decoder
    layers. A video's frames stand in the prompt with their time stamps between them.
    """

    name = "qwen3_vl"
    model_types = frozenset({"qwen3_vl", "qwen3_vl_moe"})

    @property
    def frame_layout(self) -> FrameLayout | None:
        pictures = self.config.vision_config.temporal_patch_size
        return FrameLayout("video", pictures, one_video=False, stamped=True)

    def frame_words(self, seconds: float) -> tuple[str, str]:
        return f"<{seconds:.1f} seconds><|vision_start|>", "<|vision_end|>"
