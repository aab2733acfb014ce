"""The processor: fits, tiles, templates, placeholders, batches, and inputs that do not match."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from tests.vlm import encoders, models
from vlm.embedded import mini
from vlm.media import MediaError
from vlm.model import FoveateProcessor
from vlm.model.views import View, arrangement

CLIP_VIEW = {
    "name": "clip",
    "grid": [4, 4],
    "image_size": [16, 16],
    "mean": [0.5, 0.25, 0.75],
    "std": [0.5, 0.25, 0.25],
    "fit": "squash",
    "resample": "bicubic",
    "max_tiles": 1,
}


def processor(template="v1", views=(CLIP_VIEW,), tokenizer=None, **changes):
    tokenizer = tokenizer or mini.build_tokenizer()
    if "<video>" not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": ["<video>"]}, False)
    return FoveateProcessor(tokenizer, [{**view, **changes} for view in views], template)


def plain(size, colour=(255, 0, 0)):
    return Image.new("RGB", size, colour)


def holders(inputs, tokenizer, token="<image>"):
    return (inputs["input_ids"] == tokenizer.convert_tokens_to_ids(token)).sum(1).tolist()


# --- pixels ---


def test_pixels_are_scaled_and_normalised():
    pixels = processor()(images=plain((30, 20), (255, 51, 0)))["pixel_values"]
    assert pixels.shape == (1, 3, 16, 16) and pixels.dtype == torch.float32
    expected = torch.tensor([(1 - 0.5) / 0.5, (0.2 - 0.25) / 0.25, -0.75 / 0.25])
    torch.testing.assert_close(pixels[0, :, 5, 5], expected)


def test_pad_puts_the_picture_in_the_middle_of_the_mean_colour():
    pixels = processor(fit="pad")(images=plain((32, 16)))["pixel_values"][0]
    # Rows 0 to 3 and 12 to 15 are padding; int(255 * mean) is off by less than one step of 255.
    assert pixels[:, 1].abs().max() < 1 / 255 / 0.25 and pixels[:, -2].abs().max() < 1 / 255 / 0.25
    torch.testing.assert_close(pixels[0, 8], torch.ones(16))
    tall = processor(fit="pad")(images=plain((16, 32)))["pixel_values"][0]
    torch.testing.assert_close(tall, pixels.mT)


def test_pad_follows_a_view_that_is_not_square():
    view = View.of({**CLIP_VIEW, "image_size": [8, 16], "fit": "pad"})
    pixels, _ = view.see([plain((32, 16))])
    torch.testing.assert_close(pixels[0, 0], torch.ones(8, 16))
    pixels, _ = view.see([plain((16, 16))])
    assert (pixels[0, 0, 4] > 0.5).nonzero().flatten().tolist() == list(range(4, 12))


def test_crop_takes_the_middle_of_the_shorter_side():
    picture = plain((48, 16))
    picture.paste((0, 255, 0), (16, 0, 32, 16))
    pixels = processor(fit="crop")(images=picture)["pixel_values"][0]
    torch.testing.assert_close(pixels[0], -torch.ones(16, 16))
    squashed = processor(fit="squash")(images=picture)["pixel_values"][0]
    assert squashed[0].max() > 0.9


def test_crop_is_what_clip_does():
    stock = hf.CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_mean=[0.5] * 3
    )
    picture = models.picture(0, (37, 61))
    expected = stock(picture, return_tensors="pt")["pixel_values"]
    actual = processor(fit="crop", mean=[0.5] * 3, std=stock.image_std)(images=picture)
    assert torch.equal(actual["pixel_values"], expected)


@pytest.mark.parametrize(
    ("size", "most", "expected"),
    [
        ((16, 16), 4, (1, 1)),
        ((64, 32), 4, (1, 2)),
        ((32, 64), 4, (2, 1)),
        ((64, 64), 4, (2, 2)),
        ((640, 640), 9, (3, 3)),
        ((90, 30), 3, (1, 3)),
        ((30, 90), 3, (3, 1)),
        ((30, 90), 1, (1, 1)),
        ((5, 5), 9, (1, 1)),
    ],
)
def test_the_arrangement_of_tiles(size, most, expected):
    assert arrangement(plain(size), (16, 16), most) == expected


def test_tiles_are_parts_of_the_picture_in_raster_order():
    picture = plain((32, 32))
    picture.paste((255, 255, 255), (16, 0, 32, 16))
    inputs = processor(max_tiles=4)(images=picture, text="<image>")
    assert inputs["image_tiles"].tolist() == [[2, 2]]
    whiteness = inputs["pixel_values"][1:].mean((1, 2, 3))
    assert whiteness.argmax() == 1 and inputs["pixel_values"].shape[0] == 5
    assert holders(inputs, processor().tokenizer) == [16 + 64]


def test_experts_have_tiles_of_their_own():
    other = {**CLIP_VIEW, "name": "sam", "image_size": [32, 32], "grid": [2, 2], "max_tiles": 2}
    inputs = processor(views=(CLIP_VIEW, other))(
        images=[plain((128, 64)), plain((9, 9))], text="<image> <image>"
    )
    assert inputs["image_tiles"]["sam"].tolist() == [[1, 2], [1, 1]]
    assert inputs["image_tiles"]["clip"].tolist() == [[1, 1], [1, 1]]
    assert {k: len(v) for k, v in inputs["pixel_values"].items()} == {"clip": 2, "sam": 4}
    assert holders(inputs, processor().tokenizer) == [(16 + 4 + 8) + (16 + 4)]


def test_inputs_go_to_another_dtype_whole():
    other = {**CLIP_VIEW, "name": "sam"}
    inputs = processor(views=(CLIP_VIEW, other))(images=plain((9, 9)), text="<image>")
    moved = inputs.to(torch.bfloat16)
    assert {v.dtype for v in moved["pixel_values"].values()} == {torch.bfloat16}
    assert moved["input_ids"].dtype == torch.int64


# --- text ---


def test_batches_of_different_shapes_and_both_sides():
    p = processor()
    texts = ["a <image> b <image>", "<image>", "no picture"]
    images = [plain((10, 20)), plain((70, 20)), plain((5, 5))]
    for side in ("left", "right"):
        inputs = p(images=images, text=texts, padding_side=side)
        assert holders(inputs, p.tokenizer) == [32, 16, 0]
        column = 0 if side == "right" else -1
        assert inputs["attention_mask"][:, column].all()
        assert not inputs["attention_mask"][2].all()
    assert p(text="no picture").keys() == {"input_ids", "attention_mask"}
    nested = p(images=[images[:2], images[2:], []], text=texts)
    assert torch.equal(nested["input_ids"], p(images=images, text=texts)["input_ids"])


def test_videos_of_every_form(tmp_path):
    p = processor()
    frames = [models.picture(seed, (20, 12)) for seed in range(3)]
    array = np.stack([np.asarray(frame) for frame in frames])
    for video in (frames, array, list(array), [frames], [array]):
        inputs = p(videos=video, text="<video> what")
        assert holders(inputs, p.tokenizer, "<video>") == [48]
        assert inputs["video_frames"].tolist() == [3] and "video_times" not in inputs
        assert inputs["pixel_values_videos"].shape == (3, 3, 16, 16)
    for number, frame in enumerate(frames):
        frame.save(tmp_path / f"{number}.png")
    inputs = p(videos=str(tmp_path), text="<video> what")
    assert inputs["video_times"].tolist() == [0.0, 1.0, 2.0]
    both = p(videos=[[frames], [frames[:2], frames[:1]]], text=["<video>", "<video> <video>"])
    assert both["video_frames"].tolist() == [3, 2, 1]
    assert holders(both, p.tokenizer, "<video>") == [48, 48]


# --- templates ---

MESSAGES = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": "a star"},
]


def test_v1_is_vicunas():
    prompt = processor("v1").apply_chat_template(MESSAGES[:1], add_generation_prompt=True)
    assert prompt == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. "
        "USER: <image>\nWhat is it? ASSISTANT:"
    )
    more = [{"role": "system", "content": "Be brief."}, *MESSAGES, MESSAGES[0] | {"content": "Eh?"}]
    prompt = processor("v1").apply_chat_template(more, add_generation_prompt=True)
    assert prompt == (
        "Be brief. USER: <image>\nWhat is it? ASSISTANT: a star</s>USER: Eh? ASSISTANT:"
    )


def test_plain_is_the_picture_and_its_caption():
    assert processor("plain").apply_chat_template(MESSAGES) == "<image>a star\n"
    video = [{"role": "user", "content": [{"type": "video"}]}, MESSAGES[1]]
    assert processor("plain").apply_chat_template(video) == "<video>a star\n"


OWN = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_the_language_models_own_template_knows_no_pictures():
    tokenizer = mini.build_tokenizer()
    tokenizer.chat_template = OWN
    p = processor("llm", tokenizer=tokenizer)
    prompt = p.apply_chat_template(MESSAGES, add_generation_prompt=True)
    assert prompt == "<|user|><image>\nWhat is it?\n<|assistant|>a star\n<|assistant|>"
    with pytest.raises(ValueError, match="no chat template of its own"):
        processor("llm").apply_chat_template(MESSAGES)


def test_a_conversation_to_inputs_and_back_from_disk(tmp_path):
    tokenizer = mini.build_tokenizer()
    tokenizer.chat_template = OWN
    for template in ("v1", "plain", "llm"):
        p = processor(template, tokenizer=tokenizer)
        messages = [dict(MESSAGES[0]), MESSAGES[1]]
        parts = [{"type": "image", "image": plain((9, 9))}, {"type": "text", "text": "What"}]
        messages[0] = {"role": "user", "content": parts}
        inputs = p.apply_chat_template(messages, tokenize=True, return_dict=True)
        assert holders(inputs, tokenizer) == [16] and inputs["pixel_values"].shape[0] == 1
        p.save_pretrained(tmp_path / template)
        again = FoveateProcessor.from_pretrained(tmp_path / template)
        assert again.views == p.views and again.template == template
        assert again.chat_template == p.chat_template
        assert again.apply_chat_template(messages) == p.apply_chat_template(messages)


@pytest.mark.parametrize("template", ["v1", "plain"])
def test_the_mask_of_answers_is_right_after_placeholders_have_grown(template):
    p = processor(template)
    part = {"type": "image", "image": plain((9, 9))}
    talk = [{"role": "user", "content": [part, {"type": "text", "text": "What"}]}, MESSAGES[1]]
    inputs = p.apply_chat_template(
        [talk, [*talk, *talk]],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    for ids, mask, turns in zip(
        inputs["input_ids"], inputs["assistant_masks"], (1, 2), strict=True
    ):
        said = p.tokenizer.decode(ids[mask.bool()])
        end = "</s>" if template == "v1" else ""
        assert "".join(said.split()) == f"astar{end}" * turns


# --- what does not match ---


@pytest.mark.parametrize(
    ("text", "images", "words"),
    [
        ("<image> <image>", 1, r"\[2\] placeholders <image> and 1 inputs"),
        ("no picture", 1, r"\[0\] placeholders <image> and 1 inputs"),
        ("<image>", 0, r"\[1\] placeholders <image> and 0 inputs"),
        (["<image>", "<image>"], 3, r"\[1, 1\] placeholders <image> and 3 inputs"),
    ],
)
def test_more_placeholders_than_pictures_and_the_reverse(text, images, words):
    with pytest.raises(ValueError, match=words):
        processor()(images=[plain((9, 9))] * images or None, text=text)


def test_pictures_of_one_text_do_not_count_for_another():
    with pytest.raises(ValueError, match=r"\[1, 1\] placeholders <image> and \[2, 0\]"):
        processor()(images=[[plain((9, 9))] * 2, []], text=["<image>", "<image>"])
    with pytest.raises(ValueError, match=r"<video> and 0 inputs"):
        processor()(images=plain((9, 9)), text="<image> <video>")


def test_bad_pictures_and_videos(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(MediaError, match=r"a\.jpg"):
        processor()(images=str(tmp_path / "a.jpg"), text="<image>")
    with pytest.raises(ValueError, match="without frames"):
        processor()(videos=np.zeros((0, 4, 4, 3), np.uint8), text="<video>")


def test_nothing_is_cut_off_in_silence():
    with pytest.raises(ValueError, match="truncation"):
        processor()(text="a b c", truncation=True, max_length=2)
    with pytest.raises(ValueError, match="none of them"):
        processor()()


def test_processors_that_cannot_be():
    with pytest.raises(ValueError, match="views is empty"):
        FoveateProcessor(mini.build_tokenizer(), [])
    with pytest.raises(ValueError, match="template='v2'"):
        processor("v2")
    words = hf.PreTrainedTokenizerFast(
        tokenizer_object=bare_tokenizer(), pad_token="<pad>", unk_token="<unk>"
    )
    with pytest.raises(ValueError, match="no token '<image>'"):
        FoveateProcessor(words, [CLIP_VIEW])


def bare_tokenizer():
    from tokenizers import Tokenizer
    from tokenizers import models as kinds

    return Tokenizer(kinds.WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>"))


def test_a_user_cannot_write_a_placeholder():
    """The word in the question is counted, and does not match."""
    with pytest.raises(ValueError, match=r"\[2\] placeholders"):
        processor()(images=plain((9, 9)), text="USER: <image>\nWhat does <image> mean ASSISTANT:")


def test_views_of_every_expert_family():
    model, p = models.build(encoders.FAMILIES)
    inputs = p(images=models.picture(), text="<image>")
    total = sum(rows * columns for rows, columns in model.config.token_grids().values())
    assert holders(inputs, p.tokenizer) == [total]
    for name, expert in model.model.experts.items():
        assert inputs["pixel_values"][name].shape[2:] == expert.config.image_size
