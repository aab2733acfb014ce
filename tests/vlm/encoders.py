"""Tiny random encoders of every expert family, for the tests of experts, fusion and the model."""

from __future__ import annotations

import torch
import transformers as hf

from vlm.experts import Expert, build_expert, expert_config, open_clip

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": 4,
}


def encoder(family: str):
    """The tiny encoder's configuration."""
    if family == "clip":
        return hf.CLIPVisionConfig(image_size=16, **SMALL)
    if family == "siglip":
        return hf.SiglipVisionConfig(image_size=16, **SMALL)
    if family == "siglip2":
        return hf.Siglip2VisionConfig(num_patches=16, **SMALL)
    if family == "dinov2":
        return hf.Dinov2Config(image_size=16, **SMALL)
    if family == "mae":
        return hf.ViTMAEConfig(image_size=16, mask_ratio=0.75, **SMALL)
    if family == "sam":
        windows = {"window_size": 3, "global_attn_indexes": [1]}
        return hf.SamVisionConfig(image_size=32, output_channels=8, **windows, **SMALL)
    if family == "layoutlmv3":
        text = {"vocab_size": 20, "coordinate_size": 4, "shape_size": 2}
        return hf.LayoutLMv3Config(input_size=16, **text, **SMALL)
    if family == "open_clip":
        vision = {"layers": 3, "width": 16, "head_width": 8, "patch_size": 4, "image_size": 16}
        return open_clip.configuration({"embed_dim": 8, "vision_cfg": vision})
    vision = {"timm_model_name": "test_convnext", "image_size": 64}
    return open_clip.configuration({"embed_dim": 8, "vision_cfg": vision})


FAMILIES = (
    "clip",
    "siglip",
    "siglip2",
    "dinov2",
    "mae",
    "sam",
    "layoutlmv3",
    "open_clip",
    "open_clip_conv",
)


def randomise(module, seed: int = 0, std: float = 0.3):
    """Weights far from any initial symmetry."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_(0.0, std, generator=generator)
    return module


def expert(family: str, name: str | None = None, **settings) -> Expert:
    """A tiny expert with random weights."""
    config = expert_config(name or family, family, encoder(family), **settings)
    return randomise(build_expert(config)).eval()


def pixels(item: Expert, count: int = 2, seed: int = 0) -> torch.Tensor:
    """Random pixels that fit the expert."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *item.config.image_size, generator=generator)
