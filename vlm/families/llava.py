"""LLaVA-1.5: a CLIP or SigLIP tower, an MLP, a language model; one square grid an image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlm.families.base import Family, UnknownFamily, VisualInput
from vlm.families.taps import ProjectionTap, Tap


class Llava(Family):
    """`LlavaForConditionalGeneration`, the embedded model included."""

    name = "llava"
    model_types = frozenset({"llava"})
    resizes = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        kind = self.config.vision_config.model_type
        if kind not in ("clip_vision_model", "siglip_vision_model"):
            raise UnknownFamily(
                f"a {self.name} model with a vision tower of type {kind!r} is not known; known: "
                "'clip_vision_model', 'siglip_vision_model'"
            )
        self.has_cls = kind == "clip_vision_model"
        if (self.config.vision_feature_select_strategy == "default") != self.has_cls:
            raise UnknownFamily(
                f"vision_feature_select_strategy={self.config.vision_feature_select_strategy!r} on "
                f"{kind!r}: expected 'default' where there is a class token, which is no cell, and "
                "'full' where there is none"
            )

    @property
    def side(self) -> int:
        """Cells along each side of a tile."""
        vision = self.config.vision_config
        return int(vision.image_size // vision.patch_size)

    @property
    def cells(self) -> int | None:
        return self.side**2

    @property
    def tower(self) -> nn.Module:
        return self.core.vision_tower

    def vision_layers(self, kind: str) -> Sequence[Any]:
        tower: Any = getattr(self.tower, "vision_model", self.tower)
        return tower.encoder.layers

    def tap(self, layer: Any) -> Tap:
        return ProjectionTap(layer.self_attn, self.has_cls)

    def merge_point(self, kind: str) -> nn.Module | None:
        return self.core.multi_modal_projector

    @contextmanager
    def resized(self, side: int, block_of: Tensor) -> Iterator[None]:
        config, prefix = self.config.vision_config, int(self.has_cls)

        def smaller(tower: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            kwargs = {**kwargs, "interpolate_pos_encoding": True}
            pixels = args[0] if args else kwargs.pop("pixel_values")
            shape = (side * config.patch_size, side * config.patch_size)
            small = functional.interpolate(pixels.float(), shape, mode="bicubic", antialias=True)
            return (small.to(pixels.dtype), *args[1:]), kwargs

        def spread(tower: nn.Module, args: Any, output: Any) -> Any:
            def over(x: Tensor | None) -> Tensor | None:
                if x is None:  # a layer whose states nobody asked for
                    return None
                return torch.cat([x[:, :prefix], x[:, prefix:][:, block_of.to(x.device)]], dim=1)

            output.last_hidden_state = over(output.last_hidden_state)
            if output.hidden_states is not None:
                output.hidden_states = tuple(map(over, output.hidden_states))
            return output

        handles = [
            self.tower.register_forward_pre_hook(smaller, with_kwargs=True),
            self.tower.register_forward_hook(spread),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        images, _, height, width = call["pixel_values"].shape
        patch = self.config.vision_config.patch_size
        return [VisualInput.plain((1, height // patch, width // patch))] * images

    def blank(self, kind: str) -> dict[str, Tensor]:
        size = self.config.vision_config.image_size
        return {"pixel_values": torch.zeros(1, 3, size, size)}
