"""Compression of the model of several experts, which is a family of its own."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config

from compress import compress
from compress.methods import Duet
from compress.tokens import VisualTokens
from eval.answerers import ModelAnswerer, Question
from eval.arms import DENSE, Arm
from tests.compress.common import encodings
from tests.marks import later
from tests.vlm import encoders, models
from vlm.experts import FeatureCache
from vlm.families import UnknownFamily, adapter_of
from vlm.model import from_llava

FUSIONS = {
    "sequence": {"window": {"sam": 2}},
    "rows": {"window": {"sam": 2}, "scheme": {"sam": {"type": "Compact", "by": "row"}}},
}


def ask(processor, count=2, **kwargs):
    texts = ["USER: <image>\nWhat ASSISTANT:", "and <image> is it a picture of a star"][:count]
    return processor(images=[models.picture(i) for i in range(count)], text=texts, **kwargs)


@pytest.mark.parametrize(
    "method", ["duet", "random", *later("divprune", "visionzip", "fastv", "downsample")]
)
@torch.no_grad()
def test_one_expert_is_reduced_as_stock_llava_is(method):
    stock, processor = models.stock_llava()
    encoders.randomise(stock, std=0.15)
    ours = from_llava(stock)
    inputs = ask(processor, padding=True, return_tensors="pt")
    results = []
    for model in (stock, ours):
        generator = torch.Generator().manual_seed(0)
        with compress(model, method, budget=20, generator=generator) as c:
            logits = models.logits(model, inputs)
            ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
            results.append((logits, ids, str(c.settings.allocation(144))))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=1e-4)
    assert torch.equal(results[0][1], results[1][1]) and results[0][2] == results[1][2]


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
@torch.no_grad()
def test_keep_all_is_bit_equal_with_two_experts(fusion):
    model, processor = models.build(("clip", "sam"), FUSIONS[fusion])
    inputs = ask(processor)
    expected = models.logits(model, inputs)
    how = {"max_new_tokens": 4, "do_sample": False}
    said = model.generate(**inputs, **how)
    with compress(model, "duet", budget=32):
        assert torch.equal(models.logits(model, inputs), expected)
        assert torch.equal(model.generate(**inputs, **how), said)
    assert torch.equal(models.logits(model, inputs), expected)


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
@pytest.mark.parametrize("method", ["duet", *later("divprune", "visionzip", "fastv")])
@torch.no_grad()
def test_a_batch_of_two_experts_gives_each_what_it_gets_alone(method, fusion):
    model, processor = models.build(("clip", "sam"), FUSIONS[fusion])
    inputs, first = ask(processor), ask(processor, 1)
    dense = models.logits(model, first)
    with compress(model, method, budget=10) as c:
        together, alone = models.logits(model, inputs), models.logits(model, first)
        assert c.settings.allocation(32).average == pytest.approx(10, abs=2)
    real = inputs["attention_mask"][0].bool()
    torch.testing.assert_close(together[0][real], alone[0], atol=1e-4, rtol=1e-3)
    assert alone.shape == dense.shape and (alone - dense)[0, -1].abs().max() > 1e-3


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
@torch.no_grad()
def test_decoding_goes_on_where_one_forward_of_everything_would(fusion):
    model, processor = models.build(("clip", "sam"), FUSIONS[fusion])
    first = ask(processor, 1)
    how = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": -1}
    with compress(model, "duet", budget=10):
        out = model.generate(**first, **how, output_logits=True, return_dict_in_generate=True)
        longer = torch.cat([first["input_ids"], out.sequences[:, -3:-1]], dim=1)
        whole = models.logits(
            model,
            {
                "input_ids": longer,
                "attention_mask": torch.ones_like(longer),
                "pixel_values": first["pixel_values"],
            },
            logits_to_keep=3,
        )
    torch.testing.assert_close(torch.stack(out.logits, dim=1), whole, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_all_families_give_their_scores():
    model, processor = models.build(encoders.FAMILIES, {"window": {"sam": 4}})
    inputs = ask(processor)
    with compress(model, "duet", budget=20):
        assert models.logits(model, inputs).isfinite().all()


@torch.no_grad()
def test_a_map_of_attention_is_one_block_a_view():
    """Its column means are what each token receives, which another function counts."""
    model, processor = models.build(("siglip", "sam"), {"window": {"sam": 2}})
    frames = [models.picture(seed) for seed in range(3)]
    inputs = processor(videos=[frames], text="<video> what")
    method = Duet(cluster="attention")
    with compress(model, method, budget=20), encodings(model) as encoded:
        assert models.logits(model, inputs).isfinite().all()
    (whole,), received = encoded["video"].attention, encoded["video"].fields["saliency"]
    per_view = [16] * 6  # three frames of 4 x 4 tokens from each
    blocks = [torch.ones(n, n, dtype=torch.bool) for n in per_view]
    assert torch.equal(whole > 0, torch.block_diag(*blocks))
    torch.testing.assert_close(whole.sum(0) / 16, received, atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_one_experts_video_is_merged_before_the_fusion():
    """The features of the video are the fusion of what the method makes of the encoder's."""
    model, processor = models.build(("clip",))
    frames = [models.picture(seed) for seed in range(3)]
    inputs = processor(videos=[frames], text="<video> what")
    method = Duet(layers=(), ratios=())
    with compress(model, method, budget=12), encodings(model) as encoded:
        logits = models.logits(model, inputs)
    fields = encoded["video"].fields
    expert = model.model.experts["clip"]
    seen = expert(inputs["pixel_values_videos"], scores=False).features
    tokens = VisualTokens(
        seen.flatten(0, 1)[None],
        (3, 4, 4),
        keys=fields["keys"][None],
        saliency=fields["saliency"][None],
    )
    reduced = method.reduce(tokens, 12)
    assert (reduced.size > 1).any()
    rows = model.model.fusion("clip", reduced.features, (3, 4))
    ids = inputs["input_ids"][0]
    first = int((ids == model.config.video_token_id).nonzero()[0])
    text = model.get_input_embeddings()(torch.cat([ids[:first], ids[first + 48 :]]))
    embeds = torch.cat([text[:first], rows[0], text[first:]])[None]
    places = torch.cat([torch.arange(first), first + reduced.anchor[0]])
    places = torch.cat([places, torch.arange(first + 48, len(ids))])[None]
    out = model.model.language_model(
        inputs_embeds=embeds, position_ids=places, attention_mask=torch.ones_like(places)
    )
    expected = model.lm_head(out.last_hidden_state[:, -1])
    torch.testing.assert_close(logits[:, -1], expected, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_tiles_and_videos_are_reduced_too():
    model, processor = models.build(("clip",), max_tiles=4)
    frames = [models.picture(seed) for seed in range(3)]
    inputs = processor(
        images=models.picture(0, (64, 32)), videos=[frames], text="<image> and <video> what"
    )
    with compress(model, "duet", budget=8) as c:
        assert models.logits(model, inputs).isfinite().all()
        assert c.report().budget == pytest.approx(8, abs=1)


@pytest.mark.parametrize("rule", ["auto", "cls"])
@torch.no_grad()
def test_saliency_of_experts_without_a_class_token(rule):
    model, processor = models.build(("clip", "sam"), FUSIONS["sequence"])
    inputs = ask(processor, 1)
    with compress(model, Duet(saliency=rule), budget=10):
        if rule == "cls":
            with pytest.raises(ValueError, match="expert 'sam' has no class token"):
                models.logits(model, inputs)
        else:
            assert models.logits(model, inputs).isfinite().all()


@torch.no_grad()
def test_an_expert_says_which_saliency_auto_is():
    model, processor = models.build(("clip",))
    encoders.randomise(model, std=0.3)
    inputs = ask(processor, 1)
    (expert,) = model.model.experts.values()
    kept = {}
    for own in ("auto", "received"):
        expert.config.saliency = own
        for rule in ("auto", "cls", "received"):
            with compress(model, Duet(saliency=rule), budget=10):
                kept[own, rule] = models.logits(model, inputs)
    assert torch.equal(kept["auto", "auto"], kept["auto", "cls"])
    assert torch.equal(kept["received", "auto"], kept["received", "received"])
    assert not torch.equal(kept["received", "auto"], kept["received", "cls"])


def test_a_language_model_of_another_build_is_refused_with_a_reason():
    model, _ = models.build(("clip",), text=GPT2Config(n_embd=32, n_head=2, n_layer=2))
    with pytest.raises(UnknownFamily, match="GPT2Model has no 'layers'"):
        adapter_of(model)


def test_a_qformer_is_refused_with_a_reason():
    model, _ = models.build(("clip",), {"kind": "qformer", "queries": 3, "heads": 2})
    with pytest.raises(UnknownFamily, match="no place in the picture"):
        adapter_of(model)


def test_cached_features_have_no_scores(tmp_path):
    model, processor = models.build(("clip",))
    inputs = ask(processor, 1)
    model.model.feature_cache = FeatureCache(tmp_path)
    models.logits(model, inputs)
    with compress(model, "duet", budget=8), pytest.raises(UnknownFamily, match="feature_cache"):
        models.logits(model, inputs)


@pytest.mark.parametrize("experts", [("clip", "sam"), *later(("clip",), ("open_clip_conv",))])
@torch.no_grad()
def test_an_evaluation_that_shares_vision_answers_the_same(experts):
    """The runner of benchmarks hands encoder outputs from one configuration to the next."""
    model, processor = models.build(experts)
    asked = [Question("What is it?", (models.picture(seed),), 4) for seed in range(2)]
    said = []
    for share in (True, False):
        answerer = ModelAnswerer(model, processor, "tiny", share_vision=share)
        arms = (DENSE, Arm("duet", 4), Arm("divprune", 4))
        said.append([[r.text for r in answerer.answer(asked, arm, 0)] for arm in arms])
    assert said[0] == said[1]
