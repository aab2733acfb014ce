"""The ways that vision-language models are built; one file each, found by `config.model_type`."""

from __future__ import annotations

from typing import Any

from torch import nn

from vlm.families.base import ModelAdapter, UnknownFamily
from vlm.families.cohere2_vision import Cohere2Vision
from vlm.families.foveate import FoveateAdapter
from vlm.families.gemma3 import Gemma3
from vlm.families.glm4v import Glm4v
from vlm.families.internvl import InternVL
from vlm.families.lighton_ocr import LightOnOcr
from vlm.families.llava import Llava
from vlm.families.llava_next import LlavaNext
from vlm.families.llava_next_video import LlavaNextVideo
from vlm.families.llava_onevision import LlavaOnevision
from vlm.families.mistral3 import Mistral3
from vlm.families.paligemma import PaliGemma
from vlm.families.qwen2_5_vl import Qwen2_5VL
from vlm.families.qwen2_vl import Qwen2VL
from vlm.families.qwen3_5 import Qwen3_5
from vlm.families.qwen3_vl import Qwen3VL
from vlm.families.smolvlm import SmolVLM
from vlm.families.video_llava import VideoLlava
from vlm.families.vipllava import VipLlava
from vlm.inputs import Grid, View, VisualInput

ADAPTERS: tuple[type[ModelAdapter], ...] = (
    Llava,
    LlavaNext,
    LlavaOnevision,
    VideoLlava,
    Qwen2VL,
    Qwen2_5VL,
    Qwen3VL,
    InternVL,
    SmolVLM,
    Mistral3,
    Gemma3,
    Qwen3_5,
    Glm4v,
    Cohere2Vision,
    PaliGemma,
    LlavaNextVideo,
    VipLlava,
    LightOnOcr,
    FoveateAdapter,
)


def unwrapped(model: nn.Module) -> Any:
    """The transformers model inside wrappers: PEFT, torch.compile, DDP, a DeepSpeed engine."""
    inner: Any = model
    while True:
        if hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        elif "_orig_mod" in getattr(inner, "_modules", {}):
            inner = inner._orig_mod
        elif "module" in getattr(inner, "_modules", {}):
            inner = inner.module
        else:
            return inner


def adapter_of(model: nn.Module) -> ModelAdapter:
    """The family of a model, bound to it.

    Raises:
        UnknownFamily: no family serves the model's `config.model_type`.
    """
    inner = unwrapped(model)
    kind = getattr(getattr(inner, "config", None), "model_type", None)
    for family in ADAPTERS:
        if kind in family.model_types and hasattr(inner, "model"):
            return family(inner)
    known = ", ".join(sorted(name for family in ADAPTERS for name in family.model_types))
    raise UnknownFamily(
        f"{type(model).__name__} (model_type {kind!r}) is of no known family; known model types: "
        f"{known}. docs/add-a-family.md says how to add one"
    )


__all__ = [
    "ADAPTERS",
    "FoveateAdapter",
    "Grid",
    "ModelAdapter",
    "UnknownFamily",
    "View",
    "VisualInput",
    "adapter_of",
    "unwrapped",
]
