"""Blocks with position schemes of their own, and reductions, from prefill to the second turn."""

from __future__ import annotations

import pytest
import torch

from positions import PlannedRotary, PositionError
from tests.vlm import encoders, models
from vlm.embedded import mini
from vlm.model import FoveateConfig, FoveateForConditionalGeneration, FoveateProcessor
from vlm.model.positions import has_plan, packed_mask, real_tokens

FUSION = {"window": {"sam": 2}, "scheme": {"sam": {"type": "Compact", "by": "row"}}}
TEXTS = ["USER: <image>\nWhat shape ASSISTANT:", "and <image> is <image>", "no picture"]


@pytest.fixture(scope="module")
def built():
    return models.build(("clip", "sam"), FUSION)


def batch(processor, texts=TEXTS, **kwargs):
    count = sum(text.count("<image>") for text in texts)
    return processor(images=[models.picture(s) for s in range(count)] or None, text=texts, **kwargs)


def by_hand(model, ids):
    """Positions of one unpadded row: 16 CLIP tokens one by one, 16 of SAM by rows of 4."""
    positions, cursor, ids = [], 0, ids.tolist()
    while ids:
        if ids[0] != model.config.image_token_id:
            positions.append(cursor)
            cursor, ids = cursor + 1, ids[1:]
            continue
        positions += [cursor + i for i in range(16)]
        positions += [cursor + 16 + i // 4 for i in range(16)]
        cursor, ids = cursor + 20, ids[32:]
    return torch.tensor([positions], dtype=torch.float32), cursor


def reference(model, ids, features):
    """Logits of one unpadded row, from the language model alone and float position ids."""
    embeds = model.get_input_embeddings()(ids)[None]
    place = (ids == model.config.image_token_id).nonzero()[:, 0]
    embeds[0, place] = torch.cat(features) if features else embeds[0, place]
    at, _ = by_hand(model, ids)
    # A mask, or position ids with gaps would be read as packed sequences.
    mask = torch.ones_like(at, dtype=torch.long)
    hidden = model.model.language_model(
        inputs_embeds=embeds, position_ids=at, attention_mask=mask
    ).last_hidden_state
    return model.lm_head(hidden)[0]


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_each_block_has_its_own_positions(built, side):
    model, processor = built
    inputs = batch(processor, padding_side=side)
    logits = models.logits(model, inputs)
    tokens = model.get_image_features(inputs["pixel_values"]).pooler_output
    for row, own in enumerate([tokens[:1], tokens[1:], []]):
        real = inputs["attention_mask"][row].bool()
        expected = reference(model, inputs["input_ids"][row][real], own)
        torch.testing.assert_close(logits[row][real], expected, atol=5e-5, rtol=1e-3)
    plain, _ = models.build(("clip", "sam"), {"window": {"sam": 2}})
    plain.load_state_dict(model.state_dict())
    assert (models.logits(plain, inputs)[0, -1] - logits[0, -1]).abs().max() > 1e-3


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_decoding_goes_on_where_the_plan_ends(built, side):
    """Prefill and decode logits equal one forward of each row, without a cache."""
    model, processor = built
    texts = TEXTS if side == "left" else TEXTS[1:2]  # generate wants left padding
    inputs = batch(processor, texts, padding_side=side)
    how = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": -1}
    out = model.generate(**inputs, **how, output_logits=True, return_dict_in_generate=True)
    tokens = model.get_image_features(inputs["pixel_values"]).pooler_output
    parts = [tokens[:1], tokens[1:], []] if side == "left" else [tokens]
    for row, own in enumerate(parts):
        prompt = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
        ids = torch.cat([prompt, out.sequences[row, -5:-1]])
        expected = reference(model, ids, own)[-5:]
        actual = torch.stack(out.logits, dim=1)[row]
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-3)
    again = model.generate(**inputs, **how, use_cache=False)
    assert torch.equal(again, out.sequences)


@torch.no_grad()
def test_beams_and_returned_sequences(built):
    model, processor = built
    inputs = batch(processor, TEXTS[:2])
    both = model.generate(**inputs, max_new_tokens=4, num_beams=3, num_return_sequences=2)
    for row, images in enumerate([[0], [1, 2]]):
        alone = processor(images=[models.picture(i) for i in images], text=TEXTS[row])
        own = model.generate(**alone, max_new_tokens=4, num_beams=3, num_return_sequences=2)
        assert torch.equal(both[2 * row : 2 * row + 2, -4:], own[:, -4:])


@torch.no_grad()
def test_a_second_turn_on_the_cached_first(built):
    """New ids with the whole mask, another picture in them, equal to one forward over all."""
    model, processor = built
    first = batch(processor, TEXTS[:2])
    out = model.generate(
        **first,
        max_new_tokens=3,
        do_sample=False,
        eos_token_id=-1,
        return_dict_in_generate=True,
    )
    more = processor(images=[models.picture(5)], text=["so <image> what", "and which"])
    past = out.past_key_values.get_seq_length()
    new_ids = torch.cat([out.sequences[:, past:], more["input_ids"]], dim=1)
    mask = [first["attention_mask"], torch.ones(2, 3, dtype=torch.long), more["attention_mask"]]
    actual = model(
        input_ids=new_ids,
        attention_mask=torch.cat(mask, dim=1),
        past_key_values=out.past_key_values,
        pixel_values=more["pixel_values"],
    ).logits
    tokens = model.get_image_features(first["pixel_values"]).pooler_output
    extra = model.get_image_features(more["pixel_values"]).pooler_output
    own = [[tokens[0], extra[0]], tokens[1:]]
    ids = torch.cat([out.sequences, more["input_ids"]], dim=1)
    for row in range(2):
        real = torch.cat(mask, dim=1)[row].bool()
        expected = reference(model, ids[row][real], own[row])
        count = int(more["attention_mask"][row].sum())
        torch.testing.assert_close(actual[row, -count:], expected[-count:], atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_step_by_step_equals_generate_with_a_static_cache(built):
    model, processor = built
    inputs = batch(processor)
    how = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": -1}
    actual = model.generate(**inputs, **how, cache_implementation="static")
    assert torch.equal(actual, model.generate(**inputs, **how))


@torch.no_grad()
def test_nothing_is_left_on_the_rotary_embedding(built):
    model, processor = built
    inputs = batch(processor)
    rotary = model.model.language_model.rotary_emb
    models.logits(model, inputs)
    assert not rotary._forward_pre_hooks and not rotary._forward_hooks
    with pytest.raises(RuntimeError):
        model(**inputs, output_attentions="broken", past_key_values=_Broken())
    assert not rotary._forward_pre_hooks and not rotary._forward_hooks


class _Broken:
    def get_seq_length(self, *args):
        return 0

    def __getattr__(self, name):
        raise RuntimeError("a cache that fails")


@torch.no_grad()
def test_the_plan_is_there_for_others_to_use(built):
    model, processor = built
    inputs = batch(processor, TEXTS[:1])
    outputs = {"image": model.get_image_features(inputs["pixel_values"])}
    (row_plan,) = model.model.plan(inputs["input_ids"], inputs["attention_mask"], outputs)
    at, cursor = by_hand(model, inputs["input_ids"][0])
    assert row_plan.positions[:, 0, 0].tolist() == at[0].tolist()
    assert row_plan.next_position == cursor


@torch.no_grad()
def test_who_plans_on_the_rotary_embedding_is_handed_real_positions(built):
    """A compression replaces what the language model is given; here, by the same positions."""
    model, processor = built
    inputs = batch(processor)
    expected = models.logits(model, inputs)
    how = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": -1}
    said = model.generate(**inputs, **how)
    given = []
    language = model.model.language_model
    planned = PlannedRotary(language.rotary_emb)
    handle = language.register_forward_pre_hook(
        lambda m, args, kwargs: given.append(kwargs["position_ids"]), with_kwargs=True
    )
    try:
        assert has_plan(language.rotary_emb)
        torch.testing.assert_close(models.logits(model, inputs), expected, atol=1e-5, rtol=1e-4)
        mask = inputs["attention_mask"].bool()
        for row in range(3):
            at, _ = by_hand(model, inputs["input_ids"][row][mask[row]])
            assert given[0][row][mask[row]].tolist() == at[0].tolist()
        assert torch.equal(model.generate(**inputs, **how), said)
    finally:
        planned.remove()
        handle.remove()
    assert not has_plan(language.rotary_emb)


def test_training_with_schemes_has_gradients_of_the_reference(built):
    model, processor = built
    inputs = batch(processor, TEXTS[:1])
    weight = model.model.fusion.second.weight
    losses = []
    for logits in (
        model(**inputs).logits[0],
        reference(
            model,
            inputs["input_ids"][0],
            model.get_image_features(inputs["pixel_values"]).pooler_output,
        ),
    ):
        loss = logits.float().logsumexp(-1).mean()
        losses.append(torch.autograd.grad(loss, weight)[0])
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-3)


# --- encoded inputs ---


def test_features_that_do_not_fit_their_blocks_are_refused(built):
    model, processor = built
    inputs = batch(processor, TEXTS[:1])
    features = model.get_image_features(inputs.pop("pixel_values"))
    features.pooler_output = [features.pooler_output[0][:7]]
    dropped = (inputs["input_ids"] == model.config.image_token_id).cumsum(1) > 7
    inputs = {"input_ids": inputs["input_ids"].masked_fill(dropped, 9)}
    with pytest.raises(ValueError, match=r"features of \[7\] tokens"):
        model(**inputs, mm_encoder_outputs={"image": features})


# --- masks and hosts ---


def test_real_tokens_from_masks_of_all_forms():
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    causal = torch.ones(4, 4).tril().bool()
    four = mask.bool()[:, None, None] & causal
    eager = torch.zeros(four.shape).masked_fill(~four, -1e9)
    for form in (mask, four, eager, {"sliding": None, "full_attention": four}):
        assert real_tokens(form, 2, 4, 0).tolist() == mask.bool().tolist()
    assert real_tokens(mask, 2, 2, 2).all()
    assert real_tokens(None, 2, 3, 0).all()
    with pytest.raises(ValueError, match="one column"):
        real_tokens(mask, 2, 5, 0)


def test_schemes_need_a_rotary_embedding():
    import transformers as hf

    text = models.text_config(hf.GPT2Config, n_embd=32, n_layer=1, n_head=2)
    with pytest.raises(ValueError, match="no rotary embedding"):
        models.build(("clip",), {"scheme": {"clip": {"type": "Compact", "by": "row"}}}, text)


def test_two_axes_need_a_host_that_has_them():
    fusion = {"scheme": {"clip": {"type": "Compact", "by": "row_col"}}}
    model, processor = models.build(("clip",), fusion)
    with pytest.raises(PositionError, match="reads one axis"):
        model(**processor(images=models.picture(), text=TEXTS[0]))


@torch.no_grad()
def test_rows_and_columns_in_a_host_with_three_axes():
    import transformers as hf

    rope = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 3, 3]}
    text = models.text_config(hf.Qwen2VLTextConfig, rope_parameters=rope)
    expert = encoders.expert("clip")
    config = FoveateConfig(
        text_config=text,
        experts=[expert.config],
        fusion={"scheme": {"clip": {"type": "MRoPE"}}},
        image_token_id=4,
    )
    model = encoders.randomise(FoveateForConditionalGeneration(config), std=0.25).eval()
    processor = FoveateProcessor.for_model(config, mini.build_tokenizer())
    inputs = processor(images=models.picture(), text="a <image> b")
    actual = models.logits(model, inputs)[0]
    ids = inputs["input_ids"][0]
    first = int((ids == model.config.image_token_id).nonzero()[0])
    rest = len(ids) - first - 16
    places = torch.cartesian_prod(torch.tensor([0]), torch.arange(4), torch.arange(4)) + first
    text_before, after = torch.arange(first), torch.arange(rest) + first + 4
    at = torch.cat([text_before[:, None].expand(-1, 3), places, after[:, None].expand(-1, 3)])
    embeds = model.get_input_embeddings()(ids)
    tokens = model.get_image_features(inputs["pixel_values"]).pooler_output[0]
    embeds[first : first + 16] = tokens
    hidden = model.model.language_model(inputs_embeds=embeds[None], position_ids=at.T[:, None])
    expected = model.lm_head(hidden.last_hidden_state)[0]
    torch.testing.assert_close(actual, expected, atol=5e-5, rtol=1e-3)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_packed_samples_get_what_they_get_alone(built, attention):
    """Rows without a mask whose positions begin anew, as training lays them."""
    model, processor = built
    texts = [*TEXTS[:2], TEXTS[2], TEXTS[0]]
    pictures = [models.picture(seed) for seed in range(4)]
    alone = [
        processor(images=pictures[a:b] or None, text=text)
        for text, a, b in zip(texts, (0, 1, 3, 3), (1, 3, 3, 4), strict=True)
    ]
    packed = processor(images=pictures)
    packed["input_ids"] = torch.cat([single["input_ids"] for single in alone], dim=1)
    lengths = [single["input_ids"].shape[1] for single in alone]
    packed["position_ids"] = torch.cat([torch.arange(n) for n in lengths])[None]
    model.set_attn_implementation(attention)
    try:
        actual = model(**packed, use_cache=False).logits[0].split(lengths)
        for single, logits in zip(alone, actual, strict=True):
            torch.testing.assert_close(logits, model(**single).logits[0], atol=5e-5, rtol=1e-3)
    finally:
        model.set_attn_implementation("sdpa")


def test_packed_samples_with_schemes_need_a_mask():
    with pytest.raises(ValueError, match="'flash_attention_2': expected 'sdpa'"):
        packed_mask(torch.zeros(1, 4).long(), torch.float32, "flash_attention_2")
