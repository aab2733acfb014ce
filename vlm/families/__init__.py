"""The ways that vision-language models are built; one file each, found by `config.model_type`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import nn

from vlm.families.base import ModelAdapter, UnknownFamily
from vlm.families.refused import REFUSED
from vlm.inputs import Grid, View, VisualInput

# File and classes of families. They are imported when a family is first looked for: some need a
# newer transformers than the base class does, which serving engines use.
_FAMILIES = {
    "llava": "Llava",
    "llava_next": "LlavaNext",
    "llava_onevision": "LlavaOnevision",
    "video_llava": "VideoLlava",
    "qwen2_vl": "Qwen2VL",
    "qwen2_5_vl": "Qwen2_5VL",
    "qwen3_vl": "Qwen3VL",
    "internvl": "InternVL",
    "smolvlm": "SmolVLM",
    "mistral3": "Mistral3",
    "gemma3": "Gemma3",
    "gemma4": "Gemma4",
    "qwen3_5": "Qwen3_5",
    "glm4v": "Glm4v",
    "cohere2_vision": "Cohere2Vision",
    "paligemma": "PaliGemma",
    "llava_next_video": "LlavaNextVideo",
    "vipllava": "VipLlava",
    "lighton_ocr": "LightOnOcr",
    "lfm2_vl": "Lfm2VL",
    "deepseek_vl": "DeepseekVL",
    "ovis2": "Ovis2",
    "video_llama_3": "VideoLlama3",
    "paddleocr_vl": "PaddleOcrVL",
    "ernie4_5_vl_moe": "Ernie45VLMoe",
    "qwen2_5_omni": "Qwen2_5Omni Qwen3Omni",
    "fast_vlm": "FastVLM",
    "perception_lm": "PerceptionLM",
    "minicpmv4_6": "MiniCPMV46",
    "llama4": "Llama4",
    "molmo2": "Molmo2",
    "granite4_vision": "Granite4Vision",
    "foveate": "FoveateAdapter",
}

ADAPTERS: tuple[type[ModelAdapter], ...]


def __getattr__(name: str) -> Any:
    if name != "ADAPTERS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    adapters = tuple(
        getattr(import_module(f"{__name__}.{file}"), adapter)
        for file, names in _FAMILIES.items()
        for adapter in names.split()
    )
    globals()[name] = adapters
    return adapters


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
    adapters: tuple[type[ModelAdapter], ...] = __getattr__("ADAPTERS")
    inner = unwrapped(model)
    kind = getattr(getattr(inner, "config", None), "model_type", None)
    for family in adapters:
        if family.serves(inner):
            return family(inner)
    if kind in REFUSED:
        raise UnknownFamily(
            f"{type(model).__name__} (model_type {kind!r}) is not reduced: {REFUSED[kind]}"
        )
    known = ", ".join(sorted(name for family in adapters for name in family.model_types))
    raise UnknownFamily(
        f"{type(model).__name__} (model_type {kind!r}) is of no known family; known model types: "
        f"{known}. docs/add-a-family.md says how to add one"
    )


__all__ = [
    "ADAPTERS",
    "Grid",
    "ModelAdapter",
    "UnknownFamily",
    "View",
    "VisualInput",
    "adapter_of",
    "unwrapped",
]
