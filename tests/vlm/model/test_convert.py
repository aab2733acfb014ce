"""With one CLIP expert and the MLP fusion the model is LLaVA-1.5, bit by bit."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from tests.vlm import encoders, models
from vlm.model import (
    CheckpointError,
    FoveateForConditionalGeneration,
    FoveateProcessor,
    from_llava,
    to_llava,
)

TEXTS = [
    "USER: <image>\nWhat shape is it ASSISTANT:",
    "hello USER: <image>\n and <image>\nWhat colour ASSISTANT:",
    "no picture here",
]


@pytest.fixture(scope="module")
def stock():
    model, processor = models.stock_llava()
    return encoders.randomise(model, std=0.15), processor


@pytest.fixture(scope="module")
def ours(stock, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    stock[0].save_pretrained(folder)
    return from_llava(folder)


def inputs(processor, texts=TEXTS, side="left"):
    images = [models.picture(seed, (120, 90)) for seed in range(sum(t.count("<im") for t in texts))]
    return processor(
        images=images or None, text=texts, padding=True, padding_side=side, return_tensors="pt"
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_are_bit_equal(stock, ours, side):
    batch = inputs(stock[1], side=side)
    actual = ours(**batch, output_hidden_states=True)
    expected = stock[0](**batch, output_hidden_states=True)
    assert torch.equal(actual.logits, expected.logits)
    features = [x.reshape(-1, x.shape[-1]) for x in expected.image_hidden_states]
    assert torch.equal(actual.image_hidden_states, torch.cat(features))
    assert torch.equal(actual.hidden_states[1], expected.hidden_states[1])


def test_and_back_again(stock, ours, tmp_path):
    ours.save_pretrained(tmp_path / "ours")
    again = FoveateForConditionalGeneration.from_pretrained(tmp_path / "ours")
    to_llava(again).save_pretrained(tmp_path / "stock")
    back = hf.LlavaForConditionalGeneration.from_pretrained(tmp_path / "stock")
    expected = stock[0].state_dict()
    state = back.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    batch = inputs(stock[1])
    assert torch.equal(back(**batch).logits, stock[0](**batch).logits)
    assert back.config.vision_feature_layer == stock[0].config.vision_feature_layer
    assert back.config.image_seq_length == 144


def test_the_loss_and_its_gradients(stock, ours):
    batch = inputs(stock[1])
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    losses = [m(**batch, labels=labels).loss for m in (stock[0], ours)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    pairs = [
        (stock[0].model.multi_modal_projector.linear_1, ours.model.fusion.first["clip"]),
        (stock[0].model.multi_modal_projector.linear_2, ours.model.fusion.second),
        (stock[0].lm_head, ours.lm_head),
    ]
    for theirs, actual in pairs:
        assert torch.equal(theirs.weight.grad, actual.weight.grad)
    assert all(w.grad is None for w in ours.model.experts.parameters())  # frozen by default


@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": False},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 2},
        {"do_sample": False, "use_cache": False},
        {"do_sample": False, "cache_implementation": "static"},
    ],
)
def test_generate(stock, ours, how):
    batch = inputs(stock[1])
    outputs = []
    for model in (stock[0], ours):
        torch.manual_seed(7)
        outputs.append(model.generate(**batch, max_new_tokens=6, **how))
    assert torch.equal(*outputs)


def test_features_handed_in(stock, ours):
    batch = inputs(stock[1])
    pixels = batch.pop("pixel_values")
    theirs = stock[0].get_image_features(pixels, return_dict=True)
    own_features = ours.get_image_features(pixels)
    assert all(
        torch.equal(a, b)
        for a, b in zip(own_features.pooler_output, theirs.pooler_output, strict=True)
    )
    actual = ours(**batch, mm_encoder_outputs={"image": theirs}).logits
    assert torch.equal(actual, stock[0](**batch, mm_encoder_outputs={"image": theirs}).logits)


def test_the_parts_are_where_hooks_look_for_them(stock, ours):
    for model in (stock[0], ours):
        language = model.model.language_model
        assert len(language.layers) == 4
        assert language.norm is not None and language.rotary_emb is not None
        assert model.base_model is model.model
        assert model.get_input_embeddings() is language.embed_tokens
        assert model.model.vision_tower.encoder.layers[0].self_attn.q_proj.in_features == 128
    assert ours.model.multi_modal_projector is ours.model.fusion
    batch = inputs(stock[1], TEXTS[:1])
    calls = []

    def hook(module, args, kwargs):
        calls.append((kwargs["inputs_embeds"].shape, kwargs["position_ids"], kwargs["use_cache"]))

    handle = ours.model.language_model.register_forward_pre_hook(hook, with_kwargs=True)
    ours.generate(**batch, max_new_tokens=2, do_sample=False)
    handle.remove()
    assert [shape[1] for shape, _, _ in calls] == [batch["input_ids"].shape[1], 1]
    assert calls[0][1].tolist() == [list(range(batch["input_ids"].shape[1]))]


def test_the_processor_of_a_stock_llava(stock, ours):
    processor = FoveateProcessor.from_llava(stock[1], ours.config)
    batch = inputs(stock[1])
    actual = inputs(processor)
    assert set(actual) == set(batch)
    assert all(torch.equal(actual[name], batch[name]) for name in batch)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What"}]}]
    assert processor.apply_chat_template(messages) == stock[1].apply_chat_template(messages)


def test_a_siglip_llava_with_several_feature_layers():
    vision = hf.SiglipVisionConfig(image_size=16, **encoders.SMALL)
    config = hf.LlavaConfig(
        vision_config=vision,
        text_config=models.text_config(),
        image_token_index=4,
        vision_feature_select_strategy="full",
        vision_feature_layer=[-2, -1],
        projector_hidden_act="relu",
        multimodal_projector_bias=False,
    )
    stock = encoders.randomise(hf.LlavaForConditionalGeneration(config)).eval()
    ours = from_llava(stock)
    ids = torch.tensor([[5, *[4] * 16, 6, 7]])
    batch = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 16, 16)}
    expected = stock(**batch).logits
    torch.testing.assert_close(ours(**batch).logits, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(to_llava(ours)(**batch).logits, expected)


def test_what_is_no_llava_is_said():
    model, _ = models.build(["clip", "siglip"])
    with pytest.raises(CheckpointError, match="one CLIP or SigLIP expert"):
        to_llava(model)
    model, _ = models.build(["clip"], {"window": {"clip": 2}})
    with pytest.raises(CheckpointError, match="without windows"):
        to_llava(model)
    full = models.stock_llava()[0].config
    full.vision_feature_select_strategy = "full"
    with pytest.raises(CheckpointError, match="'full'"):
        from_llava(hf.LlavaForConditionalGeneration(full))


def test_missing_weights_in_a_stock_checkpoint(stock, tmp_path):
    weights = dict(stock[0].state_dict())
    del weights["model.multi_modal_projector.linear_2.weight"]
    stock[0].save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(CheckpointError, match="missing or foreign"):
        from_llava(tmp_path)
    with pytest.raises(CheckpointError, match="cannot load a LLaVA"):
        from_llava(tmp_path / "nowhere")
