"""Builds a new model from a language model, experts and a fusion."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase

from vlm.experts import Expert, ExpertConfig, build_expert
from vlm.experts.hf import UNREADABLE
from vlm.fusion import Fusion, FusionConfig
from vlm.model.configuration import FoveateConfig
from vlm.model.loading import CheckpointError
from vlm.model.modeling import FoveateForConditionalGeneration

IMAGE_TOKEN, VIDEO_TOKEN = "<image>", "<video>"


def assemble(
    language_model: str | os.PathLike[str] | PreTrainedConfig | nn.Module,
    experts: Sequence[Expert | ExpertConfig],
    tokenizer: PreTrainedTokenizerBase,
    fusion: FusionConfig | dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> FoveateForConditionalGeneration:
    """A model with a new, random fusion. Parts given as configurations are random too.

    language_model: a causal LM of transformers: a name or path (safetensors only), a
        configuration, or the model itself, which becomes part of the new one.
    experts: from `vlm.experts.load_expert` (with weights) or `expert_config` (random), in the
        order of their blocks.
    tokenizer: that of the language model. The placeholders <image> and <video> are added if it
        lacks them, and the embeddings are enlarged if they have no unused rows.

    Raises CheckpointError if the language model cannot be loaded, or if its head does more than a
    matrix, a bias, a factor and a soft cap.
    """
    causal = _language_model(language_model, dtype)
    tokens = [t for t in (IMAGE_TOKEN, VIDEO_TOKEN) if t not in tokenizer.get_vocab()]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens}, False)
    if len(tokenizer) > causal.get_input_embeddings().num_embeddings:
        _enlarge(causal, len(tokenizer))
    built = [e if isinstance(e, Expert) else build_expert(e) for e in experts]
    text = causal.config
    head = causal.get_output_embeddings()
    config = FoveateConfig(
        text_config=text,
        experts=[expert.config for expert in built],
        fusion=fusion,
        image_token_id=tokenizer.get_vocab()[IMAGE_TOKEN],
        video_token_id=tokenizer.get_vocab()[VIDEO_TOKEN],
        lm_head_bias=head.bias is not None,
        logit_scale=_scale(text),
        logit_softcap=getattr(text, "final_logit_softcapping", None),
        dtype=dtype,
    )
    # No weights are initialised here: they exist already or, for the fusion, are made below.
    with torch.device("meta"):
        model = FoveateForConditionalGeneration(config)
    model.model.language_model = causal.base_model
    model.lm_head = head
    for expert in built:
        model.model.experts[expert.config.name] = expert.to(dtype)
    widths = {expert.config.name: expert.width for expert in built}
    model.model.fusion = Fusion(config.fusion_settings, widths, text.hidden_size).to(dtype)
    model.model.fusion.apply(model._init_weights)
    model.tie_weights()
    model.generation_config = causal.generation_config
    _same_logits(model, causal)
    return model.eval()


def _language_model(source: Any, dtype: torch.dtype) -> Any:
    if isinstance(source, nn.Module):
        return source.to(dtype)
    if isinstance(source, PreTrainedConfig):
        return AutoModelForCausalLM.from_config(source, dtype=dtype)
    options: dict[str, Any] = {
        "dtype": dtype,
        "use_safetensors": True,
        "trust_remote_code": False,
        "output_loading_info": True,
    }
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(source, **options)
    except UNREADABLE as error:
        raise CheckpointError(f"cannot load a language model from {source}: {error}") from error
    model, info = loaded
    if info["missing_keys"]:
        raise CheckpointError(
            f"{source} lacks weights of {type(model).__name__}: {sorted(info['missing_keys'])[:3]}"
        )
    return model


def _scale(text: PreTrainedConfig) -> float:
    """Cohere multiplies its logits by logit_scale, Granite divides them by logits_scaling."""
    return float(getattr(text, "logit_scale", None) or 1 / getattr(text, "logits_scaling", 1.0))


@torch.no_grad()
def _same_logits(model: FoveateForConditionalGeneration, causal: Any) -> None:
    """Raise CheckpointError unless the model gives the logits of the language model on text."""
    mode, ids = causal.training, torch.tensor([[0, 1, 2, 3]], device=model.device)
    ids[ids == model.config.image_token_id] = 4
    ids[ids == model.config.video_token_id] = 5
    expected = causal.eval()(input_ids=ids).logits
    logits = model.eval()(input_ids=ids).logits
    causal.train(mode)
    if not torch.allclose(logits, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max())):
        raise CheckpointError(
            f"{type(causal).__name__} makes more of its hidden states than one matrix, a bias, a "
            "factor and a soft cap: expected a causal LM with a plain head"
        )


def _enlarge(causal: Any, rows: int) -> None:
    """Add rows to the embeddings. Nothing reads those of placeholders, so without a warning."""
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        causal.resize_token_embeddings(rows)
    finally:
        logger.setLevel(level)
