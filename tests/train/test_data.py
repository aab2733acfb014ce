"""Data: forms of samples, labels on answers only, bad samples, batches, the order of samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.train import small
from tests.vlm import models
from train.collate import Collator, blank_input
from train.dataset import Samples, Scan, scan, split
from train.encode import IGNORED, Encoder
from train.recipe import Data
from train.records import DataError, read_records
from train.sampler import GroupedSampler
from train.samples import SampleError, parse

ASK, SAY = {"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes"}


def write(folder: Path, text: str, name: str = "data.json") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


# ------------------------------------------------------------------ files


def test_records_are_found_where_they_lie(tmp_path: Path) -> None:
    records = [{"id": n, "text": "naïve ☃ " * n} for n in range(4)]
    paths = [
        write(tmp_path, json.dumps(records), "one.json"),
        write(tmp_path, "\ufeff" + json.dumps(records, indent=2, ensure_ascii=False), "two.json"),
        write(
            tmp_path, "\n".join(json.dumps(r, ensure_ascii=False) for r in records), "three.jsonl"
        ),
    ]
    found = read_records(paths)
    assert [found[n] for n in range(len(found))] == records * 3
    assert found.where(5) == f"{paths[1]}, line 6"
    assert found.where(10) == f"{paths[2]}, line 3"
    assert found.select(np.array([11, 0]))[0] == records[3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},\n {"a": }]', "line 2, column 8: no JSON"),
        ('[{"a": 1}\n {"a": 2}]', "line 2, column 2: .*expected ',' or ']'"),
        ('[{"a": 1},\n]', "line 2, column 1: .*comma before the end"),
        ('[{"a": 1}', "expected ',' or ']'"),
        ('[{"a": 1}] x', "text after the end"),
        ('{"a": 1}\n{"a": 2', "line 2, column 8: no JSON"),
        ('{"a": 1}\n3\n', "line 2: a sample is a int"),
        ('[{"a": 1},\n [2]]', "line 2: a sample is a list"),
        ("", "is empty"),
        ("[]", "holds no samples"),
    ],
)
def test_wrong_json_is_named_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_records([write(tmp_path, text)])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_records([tmp_path / "none.json"])
    (tmp_path / "latin.json").write_bytes(b'[\n{"a": "\xe9"}]')
    with pytest.raises(DataError, match="line 2: not UTF-8"):
        read_records([tmp_path / "latin.json"])


# ------------------------------------------------------------------ forms


def test_all_forms_say_the_same() -> None:
    llava = {
        "image": "a.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat?"},
            {"from": "gpt", "value": "A"},
        ],
    }
    messages = {
        "images": ["a.jpg"],
        "messages": [
            {"role": "user", "content": "<image>What?"},
            {"role": "assistant", "content": "A"},
        ],
    }
    swift = messages | {"images": [{"path": "a.jpg"}]}
    parts = {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "What?"}],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
        ]
    }
    unplaced = llava | {
        "conversations": [{"from": "human", "value": "What?"}, llava["conversations"][1]]
    }
    wanted = (("user", (("image", "a.jpg"), ("text", "What?"))), ("assistant", (("text", "A"),)))
    for record in (llava, messages, swift, parts, unplaced):
        assert parse(record).messages == wanted


def test_many_media_stand_where_they_are_named() -> None:
    sample = parse(
        {
            "images": ["a", "b"],
            "video": "c",
            "conversations": [
                {"from": "system", "value": "Be kind."},
                {"from": "human", "value": "First <image> then <video>."},
                SAY,
                {"from": "human", "value": "And <image>?"},
                SAY,
            ],
        }
    )
    assert sample.media == [("image", "a"), ("video", "c"), ("image", "b")]
    assert [role for role, _ in sample.messages] == ["system", *["user", "assistant"] * 2]
    assert sample.messages[1][1][0] == ("text", "First")


def test_a_leading_answer_is_left_out() -> None:
    assert len(parse({"conversations": [SAY, ASK, SAY]}).messages) == 2


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "x"}, "neither 'conversations' nor 'messages'"),
        ({"conversations": []}, "expected a list of turns"),
        ({"conversations": [ASK]}, "the turns are user"),
        ({"conversations": [ASK, ASK, SAY]}, "the turns are user, user, assistant"),
        ({"conversations": [ASK, SAY, ASK]}, "the turns are user, assistant, user"),
        ({"conversations": [ASK, {"from": "bot", "value": "x"}]}, "a turn is by 'bot'"),
        ({"conversations": [ASK, {"from": "gpt"}]}, "expected 'from' and 'value'"),
        ({"conversations": [ASK, {"from": "gpt", "value": " "}]}, "an answer is empty"),
        ({"conversations": [ASK, {"from": "gpt", "value": 3}]}, "expected text"),
        ({"conversations": [ASK, SAY], "image": 3}, "expected the path of a file"),
        ({"conversations": [{"from": "human", "value": "<image>"}, SAY]}, "<image> 1 times and 0"),
        (
            {"conversations": [{"from": "human", "value": "<image>"}, SAY], "images": ["a", "b"]},
            "<image> 1 times and 2 images",
        ),
        (
            {"conversations": [ASK, {"from": "gpt", "value": "<image>"}], "image": "a"},
            "the assistant's turn holds an image",
        ),
    ],
)
def test_bad_forms_are_refused(record: dict[str, Any], message: str) -> None:
    with pytest.raises(SampleError, match=message):
        parse(record)


# ------------------------------------------------------------------ labels


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
    assert int((features["mm_token_type_ids"] != 0).sum()) == small.CELLS
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
    assert int((features["mm_token_type_ids"] != 0).sum()) == 3 * small.CELLS


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
    joined = Collator(0, {}, ACCEPTS | {"pixel_values_videos", "video_frames"})(
        [features | {"faults": []}] * 2
    )
    assert joined["video_frames"].tolist() == [3, 3]
    assert len(joined["pixel_values_videos"]["clip"]) == 6


# ------------------------------------------------------------------ bad samples


def test_bad_samples_are_named_counted_and_limited(tmp_path: Path) -> None:
    path, media = small.write_data(tmp_path, 8)
    records = json.loads(path.read_text())
    records[2]["image"] = "gone.png"
    records[5]["conversations"] = records[5]["conversations"][:1]
    path.write_text(json.dumps(records, indent=1))
    with pytest.raises(DataError, match=r"(?s)2 of 8 samples are bad.*gone.png: no such file"):
        scan([str(path)], str(media), 0.1)
    found = scan([str(path)], str(media), 0.3)
    assert len(found) == 6 and len(found.faults) == 2
    assert "(id 'scene-5')" in found.faults[1].where and "the turns are" in found.faults[1].reason


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "C:\\x.png", "link.png"])
def test_paths_that_lead_out_of_the_media_folder_are_refused(tmp_path: Path, name: str) -> None:
    media = tmp_path / "media"
    media.mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    (media / "link.png").symlink_to(tmp_path / "secret.png")
    path = write(tmp_path, json.dumps([{"conversations": [ASK, SAY], "image": name}]))
    with pytest.raises(DataError, match=r"\.\.|absolute|out of"):
        scan([str(path)], str(media), 0.0)


def test_a_damaged_picture_gives_its_place_to_the_next(tmp_path: Path) -> None:
    path, media = small.write_data(tmp_path, 4)
    (media / "1.png").write_bytes(b"no picture")
    found = scan([str(path)], str(media), 0.0)
    samples = Samples(found, Encoder(small.processor(), media))
    got = samples[1]
    assert torch.equal(got["input_ids"], samples[2]["input_ids"])
    assert [fault.where for fault in got["faults"]] == [found.records.where(1)]
    assert "1.png" in got["faults"][0].reason
    assert not samples[2]["faults"]
    with pytest.raises(DataError, match="line"):
        Samples(found, Encoder(small.processor(), media), strict=True)[1]


def test_validation_is_held_out_by_the_seed(tmp_path: Path) -> None:
    path, media = small.write_data(tmp_path, 10)
    data = Data(files=(str(path),), media=str(media), validation=0.2)
    training, held = split(data, 0)
    assert held is not None and (len(training), len(held)) == (8, 2)
    ids = [scanned.records[n]["id"] for scanned in (training, held) for n in range(len(scanned))]
    assert len(set(ids)) == 10
    again = split(data, 0)[1]
    assert again is not None and np.array_equal(again.records.places, held.records.places)
    with pytest.raises(DataError, match="no data"):
        split(Data(), 0)


# ------------------------------------------------------------------ batches


def features(length: int, images: int = 0, first: int = 10) -> dict[str, Any]:
    ids = torch.arange(first, first + length)
    kinds = torch.zeros(length, dtype=torch.int64)
    kinds[1 : 1 + images * 4] = 1
    made = {"input_ids": ids, "labels": ids.clone(), "mm_token_type_ids": kinds, "cut": 0}
    if images:
        made["pixel_values"] = torch.full((images, 3, 2, 2), float(first))
    return made | {"faults": []}


ACCEPTS = frozenset({"input_ids", "labels", "attention_mask", "pixel_values", "position_ids"})


def test_padding_is_on_the_right_and_has_no_labels() -> None:
    batch = Collator(pad=0, accepts=ACCEPTS)(
        [features(6, 1), features(3, 0, 50), features(9, 2, 70)]
    )
    assert batch["input_ids"].shape == (3, 9) and "mm_token_type_ids" not in batch
    assert batch["attention_mask"].sum(1).tolist() == [6, 3, 9]
    assert bool((batch["labels"][batch["attention_mask"] == 0] == IGNORED).all())
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [10, 70, 70]
    assert batch["about"] == {"faults": [], "cut": [], "samples": 3, "text": 6, "visual": 12}


def test_packed_samples_begin_anew_and_keep_their_pictures_in_order() -> None:
    samples = [features(6, 1), features(3, 0, 50), features(9, 2, 70), features(4, 0, 90)]
    batch = Collator(pad=0, accepts=ACCEPTS, packing=True, window=10)(samples)
    assert "attention_mask" not in batch
    rows = batch["input_ids"].tolist()
    assert rows[0] == [*range(10, 16), *range(90, 94)]
    assert rows[1] == [*range(50, 53), *[0] * 7]
    assert rows[2] == [*range(70, 79), 0]
    assert batch["position_ids"][0].tolist() == [*range(6), *range(4)]
    assert batch["position_ids"][1].tolist() == [*range(3), *range(7)]
    assert batch["labels"][0, 6] == IGNORED  # it would be predicted from another sample
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [10, 70, 70]
    one = Collator(pad=0, accepts=ACCEPTS, packing=True, one_row=True)(samples)
    assert one["input_ids"].shape == (1, 22)


def test_a_batch_of_text_gets_a_blank_picture_after_its_shortest_row() -> None:
    blank = blank_input(features(6, 1, 200))
    assert blank["input_ids"].tolist() == [201, 202, 203, 204]
    collate = Collator(pad=0, blanks={"image": blank}, accepts=ACCEPTS)
    batch = collate([features(8), features(3, 0, 50)])
    assert batch["input_ids"][1].tolist() == [50, 51, 52, 201, 202, 203, 204, 0]
    assert batch["labels"][1].tolist() == [IGNORED, 51, 52, *[IGNORED] * 5]
    assert batch["attention_mask"][1].tolist() == [1] * 7 + [0]
    assert len(batch["pixel_values"]) == 1
    assert batch["about"]["visual"] == 0
    with_picture = collate([features(8, 1), features(3)])
    assert len(with_picture["pixel_values"]) == 1 and with_picture["input_ids"].shape == (2, 8)


# ------------------------------------------------------------------ order


def test_every_sample_comes_once_an_epoch_in_another_order() -> None:
    lengths = np.random.default_rng(0).integers(10, 500, 103)
    sampler = GroupedSampler(103, 8, seed=1, lengths=lengths, modality=lengths > 100)
    first = list(sampler)
    assert len(first) == len(sampler) == 104
    assert sorted(set(first)) == list(range(103))
    assert first == list(GroupedSampler(103, 8, seed=1, lengths=lengths, modality=lengths > 100))
    sampler.epoch = 1
    assert list(sampler) != first


def test_batches_are_of_one_modality_and_like_length() -> None:
    rng = np.random.default_rng(0)
    lengths, media = rng.integers(10, 500, 160), rng.random(160) < 0.3
    batches = np.array(list(GroupedSampler(160, 8, 0, lengths, media))).reshape(-1, 8)
    mixed = [b for b in batches if len(set(media[b])) > 1]
    assert len(mixed) <= 1  # what is left over
    spread = np.mean([np.ptp(lengths[b]) for b in batches])
    loose = np.array(list(GroupedSampler(160, 8, 0))).reshape(-1, 8)
    assert spread < 0.5 * np.mean([np.ptp(lengths[b]) for b in loose])


def test_fewer_samples_than_a_batch_are_repeated() -> None:
    order = list(GroupedSampler(3, 8, 0))
    assert len(order) == 8 and set(order) == {0, 1, 2}


def test_estimates_count_text_and_media() -> None:
    scanned = Scan(read_records([]), np.array([40, 80]), np.array([[1, 0], [0, 2]]))
    assert scanned.tokens(576, 100).tolist() == [586, 220]
    assert scanned.kinds == {"image", "video"}
