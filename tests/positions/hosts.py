"""Tiny stock text models, and reductions to plan with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.qwen2_5_vl import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel
from transformers.models.qwen2_vl import Qwen2VLTextConfig, Qwen2VLTextModel
from transformers.models.qwen3_vl import Qwen3VLTextConfig, Qwen3VLTextModel

from positions import PPE, Image, MRoPE, Text, plan

SMALL = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    vocab_size=50,
    max_position_embeddings=512,
    initializer_range=0.3,  # sharp attention, so that wrong positions show
    attn_implementation="eager",
)
QWEN = {
    "qwen2_vl": (Qwen2VLTextConfig, Qwen2VLTextModel, [4, 6, 6]),
    "qwen2_5_vl": (Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel, [4, 6, 6]),
    "qwen3_vl": (Qwen3VLTextConfig, Qwen3VLTextModel, [8, 4, 4]),
}
NAMES = ("llama", *QWEN)


def config_of(name, rope=None, **kwargs):
    """The configuration of a tiny text model; head size 32, so 16 channels."""
    rope = {"rope_type": "default", "rope_theta": 1e4, **(rope or {})}
    if name == "llama":
        return LlamaConfig(**{**SMALL, "rope_parameters": rope, **kwargs})
    config_class, _, sections = QWEN[name]
    rope["mrope_section"] = sections
    return config_class(**{**SMALL, "head_dim": 32, "rope_parameters": rope, **kwargs})


def text_model(name, **kwargs):
    """A tiny text model with random weights, the same each time."""
    torch.manual_seed(0)
    config = config_of(name, **kwargs)
    if name == "llama":
        return LlamaForCausalLM(config).eval().model
    return QWEN[name][1](config).eval()


@dataclass
class Reduced:
    """One sample's reduction."""

    assign: torch.Tensor
    anchor: torch.Tensor


def reduced(assign, anchor):
    """A reduction from lists."""
    return Reduced(torch.tensor(assign, dtype=torch.int64), torch.tensor(anchor, dtype=torch.int64))


def index_of(batch, length, start=0):
    """(batch, length) indices of tokens that follow one another."""
    return torch.arange(start, start + length)[None].expand(batch, -1)


def merged_plan(scheme=MRoPE(), slots=PPE(2)):
    """A plan of 12 tokens, two of which were merged from several."""
    made = plan([Text(3), Image((2, 4)), Text(1), Image((2, 2)), Text(2)], scheme)
    return made.after({1: reduced([0, 0, 1, 1, 0, 0, -1, 1], [0, 3])}, slots)


def no_hooks(module):
    """Whether a module has no forward hooks."""
    return not module._forward_hooks and not module._forward_pre_hooks


def forward(model, embeds, mask=None, position_ids=None, **kwargs):
    """Last hidden states (and the cache, where one is used)."""
    kwargs = {"use_cache": False, **kwargs}
    with torch.no_grad():
        out = model(inputs_embeds=embeds, attention_mask=mask, position_ids=position_ids, **kwargs)
    return (out.last_hidden_state, out.past_key_values) if kwargs["use_cache"] else out[0]
