"""From a sample to features: labels on answers only, the window, images and videos."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.train import small
from tests.vlm import models
from train.collate import Collator
from train.encode import IGNORED, Encoder
from train.samples import SampleError, parse

ASK, SAY = {"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes"}


def words(ids: torch.Tensor) -> str:
    return small.processor().tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("chat", "Yes</s> No, not 3</s>"),
        ("v1", "Yes</s> No, not 3</s>"),
        ("plain", "Yes\nNo, not 3\n"),
    ],
)
def test_labels_are_on_answers_alone(tmp_path: Path, template: str, said: str) -> None:
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    sample = parse(
        {
            "image": "a.png",
            "conversations": [
                {"from": "human", "value": "<image>\nIs it Yes?"},
                {"from": "gpt", "value": "Yes"},
                {"from": "human", "value": "Yes or No?"},
                {"from": "gpt", "value": "No, not 3"},
            ],
        }
    )
    features = Encoder(small.processor(), tmp_path, template)(sample)
    ids, labels = features["input_ids"], features["labels"]
    learned = labels != IGNORED
    assert torch.equal(labels[learned], ids[learned])
    assert words(ids[learned]).strip() == said.strip()
    assert int((features["mm_token_type_ids"] != 0).sum()) == small.TOKENS
    assert not bool((learned & (features["mm_token_type_ids"] != 0)).any())
    assert features["pixel_values"].shape == (1, 3, small.SIDE, small.SIDE)
    # What is left to the prompt is what the model is given at inference, and nothing else.
    asked = words(ids[~learned])
    assert "Yes or No?" in asked or template == "plain"


def test_labels_agree_with_a_template_that_marks_answers() -> None:
    marked = small.mini.CHAT_TEMPLATE.replace(
        " ASSISTANT:{% for part in message['content'] %} {{ part['text'] }}{% endfor %}"
        "{{ eos_token }}",
        " ASSISTANT:{% generation %}{% for part in message['content'] %} {{ part['text'] }}"
        "{% endfor %}{{ eos_token }}{% endgeneration %}",
    )
    assert marked != small.mini.CHAT_TEMPLATE
    sample = parse({"conversations": [ASK, SAY, ASK, {"from": "gpt", "value": "red circle"}]})
    plain = Encoder(small.processor())(sample)

    class Marked(Encoder):
        chat_template = marked

    other = Marked(small.processor())(sample)
    assert torch.equal(plain["labels"], other["labels"])
    assert torch.equal(plain["input_ids"], other["input_ids"])


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    class Forgets(Encoder):
        chat_template = "{{ messages | length }}{{ messages[-1]['content'][0]['text'] }}"

    with pytest.raises(SampleError, match="generation %}"):
        Forgets(small.processor())(parse({"conversations": [ASK, SAY]}))


def test_the_window_cuts_text_and_never_pictures(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    long = {"from": "gpt", "value": "red " * 40}
    text = parse({"conversations": [ASK, long]})
    features = Encoder(small.processor(), window=20)(text)
    assert len(features["input_ids"]) == len(features["labels"]) == 20 and features["cut"] > 20
    with pytest.raises(SampleError, match="no answer would be left"):
        Encoder(small.processor(), window=8)(
            parse({"conversations": [{"from": "human", "value": "red " * 40}, SAY]})
        )
    late = {
        "conversations": [ASK, long, {"from": "human", "value": "<image>"}, SAY],
        "image": "a.png",
    }
    with pytest.raises(SampleError, match="visual tokens would be cut"):
        Encoder(small.processor(), tmp_path, window=40)(parse(late))
    whole = Encoder(small.processor(), tmp_path, window=200)(parse(late))
    assert whole["cut"] == 0


def test_pictures_are_padded_with_the_mean_colour(tmp_path: Path) -> None:
    Image.new("RGB", (64, 32), (255, 0, 0)).save(tmp_path / "a.png")
    sample = parse({"conversations": [ASK, SAY], "image": "a.png"})
    pixels = Encoder(small.processor(), tmp_path, pad_to_square=True)(sample)["pixel_values"][0]
    assert pixels[:, 0].abs().max() < 0.02  # the mean colour is zero once it is normalised
    assert pixels[0, small.SIDE // 2].min() > 1


def test_a_video_is_frames_to_a_model_without_video(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    for n in range(6):
        Image.new("RGB", (16, 16), (40 * n, 0, 0)).save(folder / f"{n}.png")
    sample = parse({"conversations": [ASK, SAY], "video": "clip"})
    features = Encoder(small.processor(), tmp_path, frames=3)(sample)
    assert features["pixel_values"].shape[0] == 3
    assert int((features["mm_token_type_ids"] != 0).sum()) == 3 * small.TOKENS


@pytest.mark.parametrize("template", ["v1", "plain"])
def test_a_model_of_several_experts_takes_videos(tmp_path: Path, template: str) -> None:
    _, processor = models.build(("clip", "sam"), {"window": {"sam": 2}})
    folder = tmp_path / "clip"
    folder.mkdir()
    for n in range(4):
        Image.new("RGB", (16, 16), (40 * n, 0, 0)).save(folder / f"{n}.png")
    sample = parse({"conversations": [ASK, SAY], "video": "clip"})
    features = Encoder(processor, tmp_path, template, frames=3)(sample)
    assert set(features["pixel_values_videos"]) == {"clip", "sam"}
    assert len(features["pixel_values_videos"]["sam"]) == 3
    assert features["video_frames"].tolist() == [3]
    assert set(features["mm_token_type_ids"].tolist()) == {0, 2}
    accepts = frozenset({"pixel_values_videos", "video_frames"})
    joined = Collator(0, {}, accepts)([features | {"faults": []}] * 2)
    assert joined["video_frames"].tolist() == [3, 3]
    assert len(joined["pixel_values_videos"]["clip"]) == 6
