"""LightOnOCR: Mistral Small 3.1's vision side with other names, a Qwen3 decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from vlm.families.base import ModelAdapter, UnknownFamily
from vlm.families.mistral3 import Mistral3


class LightOnOcr(Mistral3):
    """`LightOnOcrForConditionalGeneration`."""

    name = "lighton_ocr"
    model_types = frozenset({"lighton_ocr"})

    def __init__(self, model: nn.Module) -> None:
        ModelAdapter.__init__(self, model)
        kind = self.config.vision_config.model_type
        if kind != "pixtral":
            raise UnknownFamily(
                f"a {self.name} model with a vision encoder of type {kind!r} is not known: "
                "expected 'pixtral'"
            )

    @property
    def vision_encoder(self) -> nn.Module:
        return self.core.vision_encoder

    def vision_layers(self, kind: str) -> Sequence[Any]:
        return self.core.vision_encoder.transformer.layers
