"""Planned positions on the rotary embeddings and text models of stock transformers classes."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.qwen2_5_vl import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel
from transformers.models.qwen2_vl import Qwen2VLTextConfig, Qwen2VLTextModel
from transformers.models.qwen3_vl import Qwen3VLTextConfig, Qwen3VLTextModel

from positions import Image, PlannedRotary, PositionError, PositionTable, Text, plan

SMALL = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    vocab_size=50,
    max_position_embeddings=512,
)


def llama(**kwargs):
    torch.manual_seed(0)
    config = LlamaConfig(**{**SMALL, **kwargs}, attn_implementation="eager")
    return LlamaForCausalLM(config).eval().model


def qwen(name, **kwargs):
    torch.manual_seed(0)
    config_class, model_class, sections = {
        "qwen2_vl": (Qwen2VLTextConfig, Qwen2VLTextModel, [4, 6, 6]),
        "qwen2_5_vl": (Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel, [4, 6, 6]),
        "qwen3_vl": (Qwen3VLTextConfig, Qwen3VLTextModel, [8, 4, 4]),
    }[name]
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections}
    head = {"head_dim": 32} if name == "qwen3_vl" else {}
    config = config_class(
        **{**SMALL, **head, "rope_parameters": rope, **kwargs}, attn_implementation="eager"
    )
    return model_class(config).eval()


HOSTS = {
    "llama": llama,
    "qwen2_vl": lambda: qwen("qwen2_vl"),
    "qwen2_5_vl": lambda: qwen("qwen2_5_vl"),
    "qwen3_vl": lambda: qwen("qwen3_vl"),
}


def forward(model, embeds, mask, position_ids=None):
    with torch.no_grad():
        return model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("host", HOSTS)
def test_identity_plan_is_bit_equal_to_stock(host, dtype):
    model = HOSTS[host]().to(dtype)
    embeds = torch.randn(2, 9, 64).to(dtype)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    stock_ids = (mask.cumsum(-1) - 1).clamp(min=0)
    stock = forward(model, embeds, mask, stock_ids)
    index = torch.arange(9)[None].expand(2, -1)
    plans = [plan([Text(3), Image((2, 2)), Text(2)]), plan([Text(5)])]
    with PositionTable.from_plans(plans, mask).on(model.rotary_emb):
        planned = forward(model, embeds, mask, index)
    real = mask.bool()
    assert torch.equal(planned[real], stock[real])
    assert not model.rotary_emb._forward_hooks and not model.rotary_emb._forward_pre_hooks
    assert torch.equal(forward(model, embeds, mask, stock_ids), stock)


def test_wrong_table_is_refused():
    model = llama()
    table = PositionTable.from_plans([plan([Text(4)]), plan([Text(3)])])
    with PlannedRotary(model.rotary_emb) as planned:
        with pytest.raises(PositionError, match="already"):
            PlannedRotary(model.rotary_emb)
        planned.table = table
        with pytest.raises(PositionError, match="table of 2 rows"):
            forward(model, torch.randn(3, 4, 64), torch.ones(3, 4), torch.arange(4).expand(3, -1))
    with pytest.raises(PositionError, match="as many"):
        PositionTable.from_plans([plan([Text(4)])], torch.ones(1, 5))
