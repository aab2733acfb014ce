"""Encoders of open_clip, by its own names, from a local safetensors file: ViT, ConvNeXt, ResNet.

The configuration is a copy of open_clip's entry of that name. A saved model does not depend on
open_clip's list. The package is imported only when such an encoder is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from vlm.attention import Call, Segments, split_heads
from vlm.experts.base import Encoder, ExpertError, Family, Pair
from vlm.experts.hf import CLIP_MEAN, CLIP_STD, side


def configuration(model: str | dict[str, Any]) -> dict[str, Any]:
    """The encoder configuration of an open_clip model.

    model: a name that open_clip ships, such as "ViT-B-16" or "convnext_base_w", or a dict like
        open_clip's own JSON files, with "vision_cfg" and "embed_dim".
    """
    settings: dict[str, Any] | None = model if isinstance(model, dict) else None
    if isinstance(model, str):
        if ":" in model:
            raise ExpertError(f"open_clip model {model!r}: expected a built-in name, no address")
        try:
            import open_clip
        except ImportError as error:
            raise ExpertError("open_clip encoders need the package open_clip_torch") from error
        settings = open_clip.get_model_config(model)
    if settings is None:
        raise ExpertError(f"open_clip does not know {model!r}; see open_clip.list_models()")
    encoder = {
        "vision_cfg": {
            **settings["vision_cfg"],
            "timm_model_pretrained": False,
            "patch_dropout": 0.0,
        },
        "embed_dim": settings["embed_dim"],
        "quick_gelu": settings.get("quick_gelu", False),
    }
    # timm's names do not tell the patch size, so it is read off an encoder, once.
    stride = _stride(_build(encoder))
    size = side(encoder["vision_cfg"].get("image_size", 224))
    return {**encoder, "image_size": list(size), "grid": [size[0] // stride, size[1] // stride]}


def load(path: str, model: str | dict[str, Any]) -> tuple[Encoder, dict[str, Any], dict[str, Any]]:
    """The vision encoder of `model` with its weights from a safetensors file of the whole model.

    Raises ExpertError if the file is missing, is not safetensors (pickle files are never opened),
    or does not have the weights of the encoder.
    """
    if Path(path).suffix != ".safetensors" or not Path(path).is_file():
        raise ExpertError(f"{path}: expected an existing .safetensors file; pickles are not opened")
    encoder = configuration(model)
    visual = _build(encoder)
    weights = {k[7:]: v for k, v in load_file(path).items() if k.startswith("visual.")}
    try:
        visual.load_state_dict(weights)
    except RuntimeError as error:
        raise ExpertError(f"{path} does not fit open_clip's {model!r}: {error}") from error
    return visual, encoder, {}


def _build(encoder: dict[str, Any]) -> Encoder:
    try:
        from open_clip.model import _build_vision_tower
    except ImportError as error:
        raise ExpertError("open_clip encoders need the package open_clip_torch") from error
    visual = _build_vision_tower(
        encoder["embed_dim"], dict(encoder["vision_cfg"]), encoder["quick_gelu"]
    )
    for module in visual.modules():
        # open_clip initialises its encoders. transformers must not initialise them again.
        module._is_hf_initialized = True
    return visual


def _stride(encoder: Encoder) -> int:
    """Pixels between neighbouring tokens."""
    if hasattr(encoder, "transformer"):
        return side(encoder.patch_size)[0]
    if hasattr(encoder, "layer4"):
        return 32
    if hasattr(encoder.trunk, "patch_embed"):
        return side(encoder.trunk.patch_embed.patch_size)[0]
    return int(encoder.trunk.feature_info[-1]["reduction"])


def _no_name(path: str) -> Any:
    raise ExpertError(
        f"an open_clip checkpoint ({path}) does not say which model it is: expected "
        "load_expert(..., model='ViT-B-16') or another of open_clip's names"
    )


def _blocks(encoder: Encoder) -> Sequence[Encoder]:
    if hasattr(encoder, "transformer"):
        return encoder.transformer.resblocks
    blocks = getattr(encoder.trunk, "blocks", None) if hasattr(encoder, "trunk") else None
    if blocks is None or not hasattr(blocks[0], "attn"):
        raise ExpertError(
            f"this {type(encoder).__name__} is no ViT: expected family 'open_clip_conv' for "
            "ConvNeXt and ResNet"
        )
    return blocks


def _run_vit(encoder: Encoder, pixels: Tensor) -> Tensor:
    if hasattr(encoder, "trunk"):
        return encoder.trunk.forward_features(pixels)
    outputs: list[Tensor] = []
    last = encoder.transformer.resblocks[-1]
    handle = last.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        encoder(pixels)
    finally:
        handle.remove()
    # An attention pool (CoCa) puts its queries, not the tokens, through the closing norm.
    return outputs[0] if encoder.attn_pool is not None else encoder.ln_post(outputs[0])


def _watch(layer: Encoder) -> dict[str, Encoder]:
    attn = layer.attn
    if type(attn).__name__ not in ("Attention", "MultiheadAttention"):
        raise ExpertError(
            f"keys and saliency of {type(attn).__name__} (rotated inside the layer) are not known; "
            "ask for features alone (scores=False)"
        )
    return {"qkv": attn.qkv} if hasattr(attn, "qkv") else {"attn": attn}


def _attention(layer: Encoder, seen: dict[str, Call]) -> Segments:
    module = layer.attn
    if "qkv" in seen:
        query, key, _ = seen["qkv"].output.chunk(3, dim=-1)
    else:
        x, bias = seen["attn"].args[0], module.in_proj_bias
        rows = 2 * x.shape[-1]
        both = F.linear(x, module.in_proj_weight[:rows], None if bias is None else bias[:rows])
        query, key = both.chunk(2, dim=-1)
    query, key = (split_heads(part, module.num_heads) for part in (query, key))
    if getattr(module, "logit_scale", None) is not None:
        scale = module.logit_scale.clamp(max=module.logit_scale_max).exp()
        return Segments(F.normalize(query, dim=-1) * scale, F.normalize(key, dim=-1), 1.0)
    for of_query, of_key in (("ln_q", "ln_k"), ("q_norm", "k_norm")):
        if hasattr(module, of_query):
            query, key = getattr(module, of_query)(query), getattr(module, of_key)(key)
    return Segments(query, key, query.shape[-1] ** -0.5)


def _run_conv(encoder: Encoder, pixels: Tensor) -> Tensor:
    if hasattr(encoder, "trunk"):
        return _raster(encoder.trunk.forward_features(pixels))
    x = encoder.stem(pixels)
    for stage in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
        x = stage(x)
    return _raster(x)


def _raster(x: Tensor) -> Tensor:
    return x.flatten(2).mT


def _last_stage(encoder: Encoder) -> Sequence[Encoder]:
    if hasattr(encoder, "layer4"):
        return [encoder.layer4]
    stages = getattr(encoder.trunk, "stages", None) if hasattr(encoder, "trunk") else None
    if stages is None:
        raise ExpertError(
            f"this {type(encoder).__name__} has no stages: expected ConvNeXt or ResNet (a ViT is "
            "of the family 'open_clip')"
        )
    return [stages[-1]]


def _native(encoder: dict[str, Any]) -> Pair:
    return side(encoder["image_size"])


def _grid(encoder: dict[str, Any], size: Pair) -> Pair:
    return side(encoder["grid"])


OPEN_CLIP = Family(
    name="open_clip",
    build=_build,
    load=_no_name,
    native=_native,
    grid=_grid,
    run=_run_vit,
    layers=_blocks,
    width=lambda encoder, layer: (
        encoder.transformer.width if hasattr(encoder, "transformer") else encoder.trunk.embed_dim
    ),
    prefix=lambda encoder: (
        1 if hasattr(encoder, "transformer") else int(encoder.trunk.num_prefix_tokens)
    ),
    watch=_watch,
    attention=_attention,
    defaults=lambda encoder: {"mean": CLIP_MEAN, "std": CLIP_STD, "layer": -2},
)

OPEN_CLIP_CONV = Family(
    name="open_clip_conv",
    build=_build,
    load=_no_name,
    native=_native,
    grid=_grid,
    run=_run_conv,
    layers=_last_stage,
    tokens=_raster,
    width=lambda encoder, layer: (
        encoder.trunk.num_features
        if hasattr(encoder, "trunk")
        else encoder.layer4[-1].bn3.num_features
    ),
    defaults=lambda encoder: {"mean": CLIP_MEAN, "std": CLIP_STD, "scoring_layer": -1},
)
