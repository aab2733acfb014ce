"""Vision encoders, each behind one interface: pixels -> features, grid, keys and saliency.

from vlm.experts import load_expert

expert = load_expert("clip", "clip", "path/to/clip-vit-large-patch14-336")
output = expert(pixels)   # (B, 3, 336, 336) -> features (B, 576, 1024), grid (24, 24), ...
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from vlm.experts import clip, dinov2, layoutlmv3, mae, open_clip, sam, siglip, siglip2
from vlm.experts.base import Expert, ExpertConfig, ExpertError, ExpertOutput, Family, get_family
from vlm.experts.cache import FeatureCache

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        clip.CLIP,
        siglip.SIGLIP,
        siglip2.SIGLIP2,
        dinov2.DINOV2,
        sam.SAM,
        mae.MAE,
        layoutlmv3.LAYOUTLMV3,
        open_clip.OPEN_CLIP,
        open_clip.OPEN_CLIP_CONV,
    )
}


def expert_config(
    name: str, family: str, encoder: Mapping[str, Any] | PreTrainedConfig, **settings: Any
) -> ExpertConfig:
    """The configuration of an expert. Fields that `settings` lack are the family's defaults.

    encoder: a transformers configuration or its dict; `open_clip.configuration(...)` for open_clip.
    settings: fields of `ExpertConfig`.
    """
    expert_family = get_family(family)
    plain = encoder.to_dict() if isinstance(encoder, PreTrainedConfig) else dict(encoder)
    usual = {"image_size": expert_family.native(plain), **expert_family.defaults(plain)}
    return ExpertConfig.of({"name": name, "family": family, "encoder": plain, **usual, **settings})


def build_expert(config: ExpertConfig | Mapping[str, Any]) -> Expert:
    """An expert with random weights."""
    config = ExpertConfig.of(config)
    return Expert(config, get_family(config.family))


def load_expert(
    name: str,
    family: str,
    path: str,
    *,
    model: str | dict[str, Any] | None = None,
    **settings: Any,
) -> Expert:
    """An expert with the weights of a local checkpoint (safetensors only, without custom code).

    path: a folder in transformers' format; for open_clip a .safetensors file.
    model: for open_clip, its name of the model ("ViT-B-16", "convnext_base_w").
    settings: fields of `ExpertConfig` that override those of the family and the checkpoint.
    Raises ExpertError if the checkpoint does not fit.
    """
    expert_family = get_family(family)
    loaded = expert_family.load(path) if model is None else open_clip.load(path, model)
    encoder, plain, read = loaded
    config = expert_config(name, family, plain, **{**read, **settings})
    return Expert(config, expert_family, encoder)


__all__ = [
    "FAMILIES",
    "Expert",
    "ExpertConfig",
    "ExpertError",
    "ExpertOutput",
    "Family",
    "FeatureCache",
    "build_expert",
    "expert_config",
    "get_family",
    "load_expert",
]
