"""LLaVA-1.5: a CLIP or SigLIP encoder, an MLP, a language model; one square grid an image."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlm.families.base import UnknownFamily
from vlm.families.clip import ClipHost
from vlm.families.resize import smaller_pictures
from vlm.inputs import FrameLayout, VisualInput


class Llava(ClipHost):
    """`LlavaForConditionalGeneration`, the embedded model included."""

    name = "llava"
    model_types = frozenset({"llava"})
    resizes = True
    videos_by_frame = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        kind = self.config.vision_config.model_type
        if kind not in ("clip_vision_model", "siglip_vision_model"):
            raise UnknownFamily(
                f"a {self.name} model with a vision encoder of type {kind!r} is not known; known: "
                "'clip_vision_model', 'siglip_vision_model'"
            )
        self.has_class_token = kind == "clip_vision_model"
        if (self.config.vision_feature_select_strategy == "default") != self.has_class_token:
            raise UnknownFamily(
                f"vision_feature_select_strategy={self.config.vision_feature_select_strategy!r} on "
                f"{kind!r}: expected 'default' where there is a class token, which is dropped, and "
                "'full' where there is none"
            )

    @property
    def side(self) -> int:
        """Patches along each side of a tile."""
        vision = self.config.vision_config
        return int(vision.image_size // vision.patch_size)

    @property
    def image_tokens(self) -> int | None:
        return self.side**2

    def projector_input(self, kind: str) -> nn.Module | None:
        return self.core.multi_modal_projector

    def resized(self, side: int, block_of: Tensor) -> AbstractContextManager[None]:
        pixels, prefix = side * self.config.vision_config.patch_size, int(self.has_class_token)

        def over(x: Tensor | None) -> Tensor | None:
            if x is None:  # a layer whose states nobody asked for
                return None
            return torch.cat([x[:, :prefix], x[:, prefix:][:, block_of.to(x.device)]], dim=1)

        def spread(output: Any) -> Any:
            output.last_hidden_state = over(output.last_hidden_state)
            if output.hidden_states is not None:
                output.hidden_states = tuple(map(over, output.hidden_states))
            return output

        return smaller_pictures(self.vision_encoder, (pixels, pixels), self.vision_encoder, spread)

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        images, _, height, width = call["pixel_values"].shape
        patch = self.config.vision_config.patch_size
        return [VisualInput.plain((1, height // patch, width // patch))] * images

    @property
    def frame_layout(self) -> FrameLayout | None:
        return FrameLayout("image", one_video=False) if self.videos_by_frame else None

    def frames_call(self, processor: Any, frames: np.ndarray) -> tuple[str, dict[str, Any]]:
        return "image", dict(processor.image_processor(images=list(frames), return_tensors="pt"))
