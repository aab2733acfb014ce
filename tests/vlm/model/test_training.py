"""Training of a model of several experts: gradients, frozen parts, calls on each rank."""

from __future__ import annotations

import pytest
import torch

from tests.vlm import encoders, models
from tests.vlm.models import PAIR, WINDOWS, batch
from vlm.experts import FeatureCache


def test_only_what_is_not_frozen_is_trained():
    experts = [encoders.expert("clip", frozen=False), encoders.expert("sam")]
    model, processor = models.build(experts, WINDOWS)
    model.train()
    inputs = batch(processor)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.image_token_id, -1)
    model(**inputs, labels=labels.masked_fill(labels == -1, -100)).loss.backward()
    core = model.model
    assert core.fusion.first["sam"].weight.grad.abs().sum() > 0
    assert core.experts["clip"].encoder.encoder.layers[0].mlp.fc1.weight.grad.abs().sum() > 0
    assert all(w.grad is None for w in core.experts["sam"].parameters())
    assert core.language_model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(reentrant):
    experts = [encoders.expert("clip", frozen=False), encoders.expert("dinov2", frozen=False)]
    model, processor = models.build(experts)
    inputs = batch(processor)
    grads = []
    for on in (False, True):
        model.train()
        if on:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        model.zero_grad()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        grads.append({n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None})
    name = "model.experts.clip.encoder.encoder.layers.0.self_attn.q_proj.weight"
    assert name in grads[0] and set(grads[0]) == set(grads[1])
    for weight, grad in grads[0].items():
        torch.testing.assert_close(grads[1][weight], grad, atol=1e-6, rtol=1e-4)


def test_a_text_only_rank_makes_the_same_calls(pair, monkeypatch):
    from vlm.model import backbone

    model, processor = pair
    monkeypatch.setattr(backbone, "_distributed", lambda: True)
    calls = []
    handles = [
        module.register_forward_hook(lambda m, a, o, name=name: calls.append(name))
        for name, module in model.named_modules()
        if name.startswith(("model.experts.", "model.fusion.")) and not list(module.children())
    ]
    text = processor(text="no picture here")
    try:
        expected = model.eval()(**text).logits
        assert calls == []
        model.train()
        output = model(**text, labels=text["input_ids"])
        alone, calls = calls, []
        frames = [models.picture(1)] * 2
        model(**processor(images=models.picture(), videos=[frames], text="<image> a <video>"))
    finally:
        for handle in handles:
            handle.remove()
        model.eval()
    assert alone and alone == calls
    torch.testing.assert_close(output.logits, expected)
    output.loss.backward()
    grads = [w.grad for w in model.model.fusion.parameters()]
    assert all(grad is not None and not grad.any() for grad in grads)
    model.zero_grad()


def test_dropped_experts_leave_zeros(pair):
    model, processor = pair
    pixels = batch(processor)["pixel_values"]
    fusion = model.model.fusion
    fusion.config.drop = 0.9
    fusion.generator = torch.Generator().manual_seed(0)
    try:
        model.train()
        dropped = model.get_image_features(pixels).pooler_output
        model.eval()
        whole = model.get_image_features(pixels).pooler_output
    finally:
        fusion.config.drop, fusion.generator = 0.0, None
    zeros = [[not part.any() for part in tokens.split(16)] for tokens in dropped]
    assert any(any(row) for row in zeros) and not any(all(row) for row in zeros)
    for kept, tokens, full in zip(zeros, dropped, whole, strict=True):
        for gone, part, before in zip(kept, tokens.split(16), full.split(16), strict=True):
            assert gone or torch.equal(part, before)


def test_features_of_frozen_experts_from_disk(pair, tmp_path):
    model, processor = pair
    inputs = batch(processor)
    expected = models.logits(model, inputs)
    ran = []
    handle = model.model.experts["sam"].encoder.register_forward_hook(lambda *a: ran.append(1))
    model.model.feature_cache = FeatureCache(tmp_path)
    try:
        for _ in range(2):
            torch.testing.assert_close(models.logits(model, inputs), expected, atol=1e-5, rtol=1e-4)
    finally:
        model.model.feature_cache = None
        handle.remove()
    assert len(ran) == 1


def test_the_cache_is_refused_where_ranks_would_part_ways(pair, tmp_path, monkeypatch):
    from vlm.model import backbone

    model, processor = pair
    monkeypatch.setattr(backbone, "is_deepspeed_zero3_enabled", lambda: True)
    model.model.feature_cache = FeatureCache(tmp_path)
    try:
        with pytest.raises(ValueError, match="ZeRO-3"):
            model(**batch(processor))
    finally:
        model.model.feature_cache = None


def test_lora_on_the_language_model_alone():
    peft = pytest.importorskip("peft")
    model, processor = models.build(PAIR, WINDOWS)
    inputs = batch(processor)
    expected = models.logits(model, inputs)
    config = peft.LoraConfig(target_modules=r".*language_model.*\.(q|v)_proj", r=2)
    wrapped = peft.get_peft_model(model, config)
    torch.testing.assert_close(models.logits(wrapped, inputs), expected)
    wrapped(**inputs, labels=inputs["input_ids"]).loss.backward()
    trained = {name for name, w in wrapped.named_parameters() if w.grad is not None}
    assert len(trained) == 3 * 2 * 2 and all("language_model" in name for name in trained)
    assert wrapped.generate(**inputs, max_new_tokens=2).shape[0] == 2
