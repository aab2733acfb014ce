"""Models saved, loaded and copied."""

from __future__ import annotations

import copy

import torch
import transformers as hf

from tests.vlm import encoders, models
from tests.vlm.models import PAIR, batch
from vlm.fusion import FusionConfig
from vlm.model import (
    FoveateConfig,
    FoveateForConditionalGeneration,
    FoveateModel,
    FoveateProcessor,
)


def test_all_families_together_saved_and_loaded(tmp_path):
    fusion = FusionConfig(window={"sam": 4, "open_clip_conv": 2})
    model, processor = models.build(encoders.FAMILIES, fusion)
    inputs = batch(processor)
    assert list(inputs["pixel_values"]) == list(encoders.FAMILIES)
    logits = models.logits(model, inputs)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin")) and list(tmp_path.glob("*.safetensors"))
    again = hf.AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(again) is FoveateForConditionalGeneration
    assert again.config.to_dict()["experts"] == model.config.to_dict()["experts"]
    assert torch.equal(models.logits(again, inputs), logits)
    reader = hf.AutoProcessor.from_pretrained(tmp_path)
    assert type(reader) is FoveateProcessor
    reloaded_inputs = batch(reader)
    assert torch.equal(reloaded_inputs["input_ids"], inputs["input_ids"])
    for name in encoders.FAMILIES:
        assert torch.equal(reloaded_inputs["pixel_values"][name], inputs["pixel_values"][name])
    assert type(hf.AutoConfig.from_pretrained(tmp_path)) is FoveateConfig
    assert not again.training and not any(w.requires_grad for w in again.model.experts.parameters())


def test_the_body_alone_loads_too(pair, tmp_path):
    model, _ = pair
    model.model.save_pretrained(tmp_path)
    body = hf.AutoModel.from_pretrained(tmp_path)
    assert type(body) is FoveateModel
    assert torch.equal(body.fusion.second.weight, model.model.fusion.second.weight)


def test_qformer_saved_and_loaded_in_bfloat16(tmp_path):
    model, processor = models.build(PAIR, {"kind": "qformer", "queries": 3, "heads": 2})
    inputs = batch(processor)
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 3 * 6
    logits = models.logits(model, inputs)
    model.save_pretrained(tmp_path)
    again = FoveateForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(models.logits(again, inputs), logits)
    half = FoveateForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {w.dtype for w in half.parameters()} == {torch.bfloat16}
    actual = models.logits(half, inputs.to(torch.bfloat16))
    torch.testing.assert_close(actual.float(), logits, atol=0.5, rtol=0.2)


def test_a_model_can_be_copied(pair):
    model, processor = pair
    inputs = batch(processor)
    assert torch.equal(models.logits(copy.deepcopy(model), inputs), models.logits(model, inputs))
