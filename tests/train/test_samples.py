"""Forms of samples, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from train.samples import SampleError, parse

ASK, SAY = {"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes"}


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
        ({"text": "x"}, "expected 'conversations' or 'messages', got 'text'"),
        ({"conversations": []}, "expected a list of turns"),
        ({"conversations": [ASK]}, "the turns are user"),
        ({"conversations": [ASK, ASK, SAY]}, "the turns are user, user, assistant"),
        ({"conversations": [ASK, SAY, ASK]}, "the turns are user, assistant, user"),
        ({"conversations": [ASK, {"from": "bot", "value": "x"}]}, "a turn is by 'bot'"),
        ({"conversations": [ASK, {"from": "gpt"}]}, "expected 'from' and 'value'"),
        ({"conversations": [ASK, {"from": "gpt", "value": " "}]}, "an answer is empty"),
        ({"conversations": [ASK, {"from": "gpt", "value": 3}]}, "expected text"),
        ({"conversations": [ASK, SAY], "image": 3}, "expected the path of a file"),
        ({"conversations": [{"from": "human", "value": "<image>"}, SAY]}, "<image> 1 times, but 0"),
        (
            {"conversations": [{"from": "human", "value": "<image>"}, SAY], "images": ["a", "b"]},
            "<image> 1 times, but 2 images",
        ),
        (
            {"conversations": [ASK, {"from": "gpt", "value": "<image>"}], "image": "a"},
            "the assistant's turn contains an image",
        ),
    ],
)
def test_bad_forms_are_refused(record: dict[str, Any], message: str) -> None:
    with pytest.raises(SampleError, match=message):
        parse(record)
