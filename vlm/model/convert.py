"""Converts stock LLaVA models to this model and back, weight by weight."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

from vlm.experts import expert_config
from vlm.experts.hf import UNREADABLE
from vlm.fusion import FusionConfig
from vlm.model.configuration import FoveateConfig
from vlm.model.loading import CheckpointError
from vlm.model.modeling import FoveateForConditionalGeneration

# Prefixes of weights: stock LLaVA's, ours. `{}` is the expert's name.
_NAMES = (
    ("model.vision_tower.", "model.experts.{}.encoder."),
    ("model.multi_modal_projector.linear_1.", "model.fusion.first.{}."),
    ("model.multi_modal_projector.linear_2.", "model.fusion.second."),
)


def from_llava(
    source: str | os.PathLike[str] | LlavaForConditionalGeneration, **kwargs: Any
) -> FoveateForConditionalGeneration:
    """Convert a stock LLaVA to this model, with one expert, the MLP fusion and equal logits.

    source: a model, or a checkpoint's path or name (kwargs go to `from_pretrained`).
    Raises CheckpointError for LLaVAs that cannot be converted: with a vision encoder other than
    CLIP or SigLIP, with the class token among the features, or with several sizes in one batch.
    """
    stock: Any = source
    if not isinstance(source, LlavaForConditionalGeneration):
        options: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True, **kwargs}
        try:
            loaded: Any = LlavaForConditionalGeneration.from_pretrained(source, **options)
        except UNREADABLE as error:
            raise CheckpointError(f"cannot load a LLaVA from {source}: {error}") from error
        stock, info = loaded
        if problems := sorted(info["missing_keys"]) + sorted(info["unexpected_keys"]):
            raise CheckpointError(
                f"{source} has missing or foreign weights: {', '.join(problems[:3])}, ..."
            )
    old = stock.config
    vision: Any = old.vision_config
    family = {CLIPVisionConfig: "clip", SiglipVisionConfig: "siglip"}.get(type(vision))
    whole = "full" if family == "siglip" else "default"
    if family is None or old.vision_feature_select_strategy != whole:
        raise CheckpointError(
            f"a LLaVA with {type(vision).__name__} and vision_feature_select_strategy="
            f"{old.vision_feature_select_strategy!r}: expected CLIP with 'default' or SigLIP with "
            "'full'"
        )
    config = FoveateConfig(
        text_config=old.text_config,
        experts=[expert_config(family, family, vision, layer=old.vision_feature_layer, fit="crop")],
        fusion=FusionConfig(
            activation=old.projector_hidden_act, bias=old.multimodal_projector_bias
        ),
        image_token_id=old.image_token_id,
        tie_word_embeddings=old.tie_word_embeddings,
        dtype=old.dtype,
    )
    model: Any = FoveateForConditionalGeneration(config)
    model.to(stock.dtype).load_state_dict(_renamed(stock.state_dict(), family, back=False))
    model.generation_config = stock.generation_config
    return model.eval()


def to_llava(model: FoveateForConditionalGeneration) -> LlavaForConditionalGeneration:
    """Convert this model to a stock LLaVA. Raises CheckpointError for several experts, windows, a
    Q-Former or position schemes."""
    config = model.config
    fusion = config.fusion_settings
    experts = config.expert_configs
    plain = fusion.kind == "mlp" and not fusion.scheme and fusion.width is None
    plain = plain and all(size == 1 for size in fusion.window.values()) and not config.lm_head_bias
    plain = plain and config.logit_scale == 1 and config.logit_softcap is None
    if len(experts) != 1 or experts[0].family not in ("clip", "siglip") or not plain:
        raise CheckpointError(
            "stock LLaVA has one CLIP or SigLIP expert and the MLP fusion without windows or "
            f"schemes; this model has {[e.family for e in experts]} and {fusion}"
        )
    expert = experts[0]
    vision = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}[expert.family]
    if not isinstance(expert.layer, int | list):
        raise CheckpointError("stock LLaVA takes hidden states by index: expected layer to be one")
    stock: Any = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision(**expert.encoder),
            text_config=config.text_config,
            image_token_index=config.image_token_id,
            image_seq_length=model.model.grids[expert.name][0] * model.model.grids[expert.name][1],
            projector_hidden_act=fusion.activation,
            multimodal_projector_bias=fusion.bias,
            vision_feature_layer=expert.layer,
            vision_feature_select_strategy="default" if expert.family == "clip" else "full",
            tie_word_embeddings=config.tie_word_embeddings,
        )
    )
    stock.to(model.dtype).load_state_dict(_renamed(model.state_dict(), expert.name, back=True))
    stock.generation_config = model.generation_config
    return stock.eval()


def _renamed(weights: dict[str, Tensor], name: str, back: bool) -> dict[str, Tensor]:
    pairs = [(stock, ours.format(name)) for stock, ours in _NAMES]
    pairs = [(ours, stock) for stock, ours in pairs] if back else pairs
    renamed = {}
    for key, value in weights.items():
        old, new = next((p for p in pairs if key.startswith(p[0])), ("", ""))
        renamed[new + key[len(old) :]] = value
    return renamed
