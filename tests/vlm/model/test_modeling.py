"""Several experts and any language model: built, called, trained, saved and loaded."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from tests.vlm import encoders, models
from vlm.embedded import mini
from vlm.experts import ExpertError, FeatureCache, expert_config
from vlm.fusion import FusionConfig
from vlm.model import (
    CheckpointError,
    FoveateConfig,
    FoveateForConditionalGeneration,
    FoveateModel,
    FoveateProcessor,
    assemble,
)

PAIR = ("clip", "sam")
WINDOWS = {"window": {"sam": 2}}
ASK = "USER: <image>\nWhat shape ASSISTANT:"


@pytest.fixture(scope="module")
def pair():
    return models.build(PAIR, WINDOWS)


def batch(processor, texts=(ASK, "and <image> is <image>"), **kwargs):
    count = sum(text.count("<image>") for text in texts)
    images = [models.picture(seed, (40 + 7 * seed, 30)) for seed in range(count)]
    return processor(images=images or None, text=list(texts), **kwargs)


# --- tokens ---


def test_tokens_are_the_experts_blocks_in_order(pair):
    model, processor = pair
    inputs = batch(processor)
    features = model.get_image_features(inputs["pixel_values"])
    assert [b.grid for b in features.blocks[0]] == [(1, 4, 4), (1, 4, 4)]
    core = model.model
    for index, tokens in enumerate(features.pooler_output):
        expected = []
        for name, expert in core.experts.items():
            seen = expert(inputs["pixel_values"][name][index : index + 1])
            expected.append(core.fusion(name, seen.features, seen.grid)[0])
        torch.testing.assert_close(tokens, torch.cat(expected), atol=1e-5, rtol=1e-5)


def test_visual_tokens_take_the_placeholders_places(pair):
    """Against the language model called by hand on text and visual tokens put together."""
    model, processor = pair
    inputs = batch(processor)
    logits = models.logits(model, inputs)
    features = model.get_image_features(inputs["pixel_values"]).pooler_output
    queue = list(features)
    for row, mask, found in zip(inputs["input_ids"], inputs["attention_mask"], logits, strict=True):
        ids, parts = row[mask.bool()].tolist(), []
        while ids:
            if ids[0] == model.config.image_token_id:
                parts.append(queue.pop(0))
                del ids[: len(parts[-1])]
            else:
                parts.append(model.get_input_embeddings()(torch.tensor(ids[:1])))
                del ids[0]
        embeds = torch.cat(parts)[None]
        hidden = model.model.language_model(inputs_embeds=embeds).last_hidden_state
        expected = model.lm_head(hidden)[0]
        torch.testing.assert_close(found[mask.bool()], expected, atol=2e-5, rtol=1e-4)
    assert not queue


def test_scores_come_with_the_tokens_if_asked(pair):
    model, processor = pair
    pixels = batch(processor)["pixel_values"]
    assert model.get_image_features(pixels).saliency is None
    features = model.get_image_features(pixels, visual_scores=True)
    assert [s.shape for s in features.saliency] == [(32,)] * 3
    assert [[k.shape for k in keys] for keys in features.cell_keys] == [[(16, 8), (16, 8)]] * 3


def test_tiles_are_put_together_in_raster_order():
    model, processor = models.build(["clip"], max_tiles=4, image_size=(16, 16))
    wide = models.picture(0, (64, 32))
    inputs = processor(images=[wide, models.picture(1, (16, 16))], text="<image> <image>")
    assert inputs["image_tiles"].tolist() == [[1, 2], [1, 1]]
    assert inputs["pixel_values"].shape == (4, 3, 16, 16)
    features = model.get_image_features(inputs["pixel_values"], inputs["image_tiles"])
    assert [b.grid for b in features.blocks[0]] == [(1, 4, 4), (1, 4, 8)]
    alone = model.get_image_features(inputs["pixel_values"]).pooler_output
    left, right = (tokens.view(4, 4, -1) for tokens in alone[1:3])
    stitched = features.pooler_output[0][16:].view(4, 8, -1)
    torch.testing.assert_close(stitched, torch.cat([left, right], dim=1))
    torch.testing.assert_close(features.pooler_output[1], alone[3])
    assert models.logits(model, inputs).shape[1] == inputs["input_ids"].shape[1]


def test_videos_beside_images(pair):
    model, processor = pair
    frames = [models.picture(seed) for seed in range(3)]
    inputs = processor(
        images=models.picture(9), videos=[frames, frames[:1]], text="<video> <image> <video>"
    )
    assert inputs["video_frames"].tolist() == [3, 1]
    videos = model.get_video_features(inputs["pixel_values_videos"], inputs["video_frames"])
    assert [b.grid for b in videos.blocks[0]] == [(3, 4, 4), (3, 4, 4)]
    image = model.get_image_features(
        {n: v[1:2] for n, v in inputs["pixel_values_videos"].items()}
    ).pooler_output[0]
    torch.testing.assert_close(videos.pooler_output[0][16:32], image[:16], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(videos.pooler_output[0][48 + 16 : 48 + 32], image[16:])
    # Pixels in one forward, or features made before: the same words.
    whole = models.logits(model, inputs)
    plain = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask")}
    handed = {"video": videos, "image": model.get_image_features(inputs["pixel_values"])}
    torch.testing.assert_close(
        models.logits(model, plain, mm_encoder_outputs=handed), whole, atol=2e-5, rtol=1e-4
    )
    out = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert out.shape[1] == inputs["input_ids"].shape[1] + 3


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_sample_gets_what_it_gets_alone(pair, side):
    model, processor = pair
    texts = [ASK, "and <image> is <image>", "no picture"]
    inputs = batch(processor, texts, padding_side=side)
    logits = models.logits(model, inputs)
    images = [models.picture(seed, (40 + 7 * seed, 30)) for seed in range(3)]
    for row, (text, own) in enumerate(zip(texts, [images[:1], images[1:], None], strict=True)):
        alone = models.logits(model, processor(images=own, text=text))
        found = logits[row][inputs["attention_mask"][row].bool()]
        torch.testing.assert_close(found, alone[0], atol=5e-5, rtol=1e-3)


def test_beams_and_samples_of_two_experts(pair):
    model, processor = pair
    inputs = batch(processor)
    for how in ({"num_beams": 3}, {"do_sample": False}):
        together = model.generate(**inputs, max_new_tokens=4, **how)[:, -4:]
        first = processor(images=models.picture(0, (40, 30)), text=ASK)
        alone = model.generate(**first, max_new_tokens=4, **how)[:, -4:]
        assert torch.equal(together[:1], alone)


# --- language models ---

LANGUAGE_MODELS = {
    "qwen3": (hf.Qwen3Config, {"head_dim": 16}),
    "gemma2": (hf.Gemma2Config, {"head_dim": 16, "final_logit_softcapping": 0.5}),
    "gemma3": (hf.Gemma3TextConfig, {"head_dim": 16}),
    "phi": (hf.PhiConfig, {}),
    "granite": (hf.GraniteConfig, {"logits_scaling": 3.0}),
    "cohere": (hf.CohereConfig, {"logit_scale": 0.3}),
    "gpt_neox": (hf.GPTNeoXConfig, {}),
    "mixtral": (hf.MixtralConfig, {"num_local_experts": 2}),
    "gpt2": (hf.GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 2, "hidden_size": 32}),
}


@pytest.mark.parametrize("name", sorted(LANGUAGE_MODELS))
def test_any_causal_lm(name, tmp_path):
    kind, settings = LANGUAGE_MODELS[name]
    config = models.text_config(kind, **settings)
    causal = encoders.randomise(hf.AutoModelForCausalLM.from_config(config), std=0.2).eval()
    reference = copy.deepcopy(causal)
    tokenizer = mini.build_tokenizer()
    model = assemble(causal, [encoders.expert("clip")], tokenizer)
    ids = torch.randint(5, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    found = models.logits(model, {"input_ids": ids})[..., : config.vocab_size]
    torch.testing.assert_close(found, models.logits(reference, {"input_ids": ids}))
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert tied == config.tie_word_embeddings == model.config.tie_word_embeddings
    processor = FoveateProcessor.for_model(model.config, tokenizer)
    inputs = processor(images=models.picture(), text=ASK)
    model.save_pretrained(tmp_path)
    again = FoveateForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(models.logits(again, inputs), models.logits(model, inputs))
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == tied


def test_rope_scaling_is_the_language_models_own(tmp_path):
    scaled = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0}
    scaled["original_max_position_embeddings"] = 128
    config = models.text_config(rope_parameters=scaled)
    model, _ = models.build(text=config)
    plain, _ = models.build()
    found = model.model.language_model.rotary_emb
    assert found.rope_type == "yarn"
    assert not torch.equal(found.inv_freq, plain.model.language_model.rotary_emb.inv_freq)
    model.save_pretrained(tmp_path)
    again = FoveateForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again.model.language_model.rotary_emb.inv_freq, found.inv_freq)


def test_a_language_model_from_a_folder(tmp_path):
    causal = encoders.randomise(hf.LlamaForCausalLM(models.text_config()), std=0.2)
    causal.save_pretrained(tmp_path)
    model = assemble(tmp_path, [encoders.expert("clip")], mini.build_tokenizer())
    weight = model.model.language_model.layers[1].mlp.up_proj.weight
    assert torch.equal(weight, causal.model.layers[1].mlp.up_proj.weight)
    assert not any(w.is_meta for w in [*model.parameters(), *model.buffers()])


def test_placeholders_get_rows_of_their_own():
    words = {word: k for k, word in enumerate(("<pad>", "<s>", "</s>", "<unk>", "<image>", "a"))}
    table = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=table, pad_token="<pad>")
    before = len(tokenizer)
    text = models.text_config(vocab_size=before)
    model = assemble(text, [encoders.expert("clip")], tokenizer)
    assert len(tokenizer) == before + 1  # <image> was there, <video> was not
    assert model.config.image_token_id == 4 and model.config.video_token_id == before
    assert model.get_input_embeddings().num_embeddings == before + 1
    assert model.config.text_config.vocab_size == before + 1
    assert model.lm_head.out_features == before + 1


def test_a_head_that_is_more_than_a_matrix_is_refused():
    causal = hf.LlamaForCausalLM(models.text_config())
    encoders.randomise(causal)

    class Squashed(type(causal)):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits.sigmoid()
            return out

    causal.__class__ = Squashed
    with pytest.raises(CheckpointError, match="plain head"):
        assemble(causal, [encoders.expert("clip")], mini.build_tokenizer())


# --- saving and loading ---


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
    found = batch(reader)
    assert torch.equal(found["input_ids"], inputs["input_ids"])
    for name in encoders.FAMILIES:
        assert torch.equal(found["pixel_values"][name], inputs["pixel_values"][name])
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
    found = models.logits(half, inputs.to(torch.bfloat16))
    torch.testing.assert_close(found.float(), logits, atol=0.5, rtol=0.2)


def test_a_model_can_be_copied(pair):
    model, processor = pair
    inputs = batch(processor)
    assert torch.equal(models.logits(copy.deepcopy(model), inputs), models.logits(model, inputs))


# --- training ---


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
        found = model(**text, labels=text["input_ids"])
        alone, calls = calls, []
        frames = [models.picture(1)] * 2
        model(**processor(images=models.picture(), videos=[frames], text="<image> a <video>"))
    finally:
        for handle in handles:
            handle.remove()
        model.eval()
    assert alone and alone == calls
    torch.testing.assert_close(found.logits, expected)
    found.loss.backward()
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


def test_the_report_counts_tokens_and_positions(pair):
    rows = pair[0].config.report()
    assert [(r["expert"], r["tokens"], r["positions"]) for r in rows] == [
        ("clip", 16, 16.0),
        ("sam", 16, 16.0),
    ]


# --- bad input ---


def test_more_or_fewer_placeholders_than_tokens(pair):
    model, processor = pair
    inputs = batch(processor, [ASK])
    short = {**inputs, "input_ids": inputs["input_ids"][:, :-20]}
    short["attention_mask"] = inputs["attention_mask"][:, :-20]
    with pytest.raises(ValueError, match=r"placeholders of token \d+ and the visual inputs"):
        model(**short)
    del inputs["pixel_values"]
    with pytest.raises(ValueError, match="32 image placeholders, but no images"):
        model(**inputs)


def test_pixels_that_do_not_fit(pair):
    model, processor = pair
    inputs = batch(processor, [ASK])
    pixels = inputs["pixel_values"]
    with pytest.raises(ValueError, match=r"expected a tensor for each of \['clip', 'sam'\]"):
        model(**{**inputs, "pixel_values": pixels["clip"]})
    with pytest.raises(ValueError, match="as many for each expert"):
        model(**{**inputs, "pixel_values": {**pixels, "sam": pixels["sam"].repeat(2, 1, 1, 1)}})
    with pytest.raises(ExpertError, match=r"expected \(B, 3, 32, 32\)"):
        model(**{**inputs, "pixel_values": {**pixels, "sam": pixels["clip"]}})
    with pytest.raises(ValueError, match="image_tiles says 3"):
        tiles = {"clip": torch.tensor([[1, 2]]), "sam": torch.tensor([[1, 1]])}
        model(**inputs, image_tiles=tiles)
    with pytest.raises(ValueError, match="one of the two"):
        model(**inputs, mm_encoder_outputs={"image": model.get_image_features(pixels)})
    with pytest.raises(ValueError, match="one of the two"):
        model(**inputs, inputs_embeds=torch.zeros(1, 3, 32))
    with pytest.raises(ValueError, match="need input_ids"):
        model(inputs_embeds=torch.zeros(1, 40, 32), pixel_values=pixels)
    with pytest.raises(ValueError, match="expected equal numbers"):
        model.get_video_features(pixels, torch.tensor([2]))


def test_configurations_that_make_no_sense():
    twice = [expert_config("e", "clip", encoders.encoder("clip"))] * 2
    with pytest.raises(ExpertError, match="each name once"):
        FoveateConfig(experts=twice)
    with pytest.raises(ValueError, match="experts is empty"):
        FoveateForConditionalGeneration(FoveateConfig(text_config=models.text_config()))
