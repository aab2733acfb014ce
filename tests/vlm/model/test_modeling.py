"""The visual tokens of several experts in a forward pass, and inputs that are refused."""

from __future__ import annotations

import pytest
import torch

from tests.vlm import models
from tests.vlm.models import ASK, batch
from vlm.experts import ExpertError


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
    for row, mask, actual in zip(
        inputs["input_ids"], inputs["attention_mask"], logits, strict=True
    ):
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
        torch.testing.assert_close(actual[mask.bool()], expected, atol=2e-5, rtol=1e-4)
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
        actual = logits[row][inputs["attention_mask"][row].bool()]
        torch.testing.assert_close(actual, alone[0], atol=5e-5, rtol=1e-3)


def test_beams_and_samples_of_two_experts(pair):
    model, processor = pair
    inputs = batch(processor)
    for how in ({"num_beams": 3}, {"do_sample": False}):
        together = model.generate(**inputs, max_new_tokens=4, **how)[:, -4:]
        first = processor(images=models.picture(0, (40, 30)), text=ASK)
        alone = model.generate(**first, max_new_tokens=4, **how)[:, -4:]
        assert torch.equal(together[:1], alone)


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
