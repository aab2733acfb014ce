"""Options in one forward, against options one by one and against whole sequences."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compress import compress
from compress.methods import PyramidDrop
from eval.one_pass import option_ids, option_scores
from tests.tiny import CASES
from vlm.embedded import mini

BY_NAME = {case.name: case for case in CASES}
OPTIONS = [[9, 14, 2], [33, 2], [9, 7, 21, 2], [40]]


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "foveate"])
def test_it_equals_one_by_one_and_whole_sequences(name: str) -> None:
    case = BY_NAME[name]
    model, sample = case.model(), case.samples()[2]
    inputs = case.inputs([sample])
    found = option_scores(model, inputs, OPTIONS)
    one_by_one = option_scores(model, inputs, OPTIONS, together=False)
    torch.testing.assert_close(found, one_by_one, atol=1e-4, rtol=1e-5)
    for score, ids in zip(found, OPTIONS, strict=True):
        more = torch.tensor(ids)
        whole = case.inputs([type(sample)(torch.cat([sample.ids, more]), sample.shown)])
        with torch.no_grad():
            logits = model(**whole).logits[0, -len(ids) - 1 : -1].double().log_softmax(-1)
        wanted = logits.gather(1, more[:, None]).sum()
        torch.testing.assert_close(score, wanted, atol=1e-4, rtol=1e-5)


def test_under_a_compression_each_continues_on_a_copy() -> None:
    case = BY_NAME["llava"]
    model, inputs = case.model(), case.inputs([case.samples()[0]])
    with compress(model, PyramidDrop(layers=(1, 2)), 0.5):
        found = option_scores(model, inputs, OPTIONS)
        alone = torch.cat([option_scores(model, inputs, [ids]) for ids in OPTIONS])
        with pytest.raises(ValueError, match="a compression has shortened"):
            option_scores(model, inputs, OPTIONS, together=True)
    torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-5)
    assert not torch.allclose(found, option_scores(model, inputs, OPTIONS), atol=1e-3)


def test_under_a_compression_they_equal_whole_sequences() -> None:
    case = BY_NAME["qwen2_vl"]
    model, sample = case.model(), case.samples()[2]
    with compress(model, "uniform", 0.5):
        found = option_scores(model, case.inputs([sample]), OPTIONS)
        for score, ids in zip(found, OPTIONS, strict=True):
            more = torch.tensor(ids)
            whole = case.inputs([type(sample)(torch.cat([sample.ids, more]), sample.shown)])
            with torch.no_grad():
                logits = model(**whole).logits[0, -len(ids) - 1 : -1].double().log_softmax(-1)
            wanted = logits.gather(1, more[:, None]).sum()
            torch.testing.assert_close(score, wanted, atol=1e-4, rtol=1e-5)


@pytest.fixture(scope="module")
def processor() -> Any:
    return mini.build()[1]


@pytest.mark.parametrize(
    ("options", "ended"), [(["red", "blue"], False), (["red", "top left", "top left corner"], True)]
)
def test_ids_are_those_of_the_chat_template(
    processor: Any, options: list[str], ended: bool
) -> None:
    model, tokenizer = mini.build()[0], processor.tokenizer
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    asked = {"role": "user", "content": content}
    prompt = processor.apply_chat_template([asked], add_generation_prompt=True)
    for option, ids in zip(options, option_ids(model, processor, content, options), strict=True):
        said = {"role": "assistant", "content": [{"type": "text", "text": option}]}
        whole = processor.apply_chat_template([asked, said])
        known = tokenizer(prompt, add_special_tokens=False).input_ids + ids
        expected = tokenizer(whole, add_special_tokens=False).input_ids
        assert known == expected[: len(known)]
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == option
        assert (ids[-1] == tokenizer.eos_token_id) == ended


def test_a_template_that_thinks_first(processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        processor,
        "apply_chat_template",
        lambda messages, **options: "USER: ASSISTANT: <s>" if options else "USER: red blue</s>",
    )
    model, tokenizer = mini.build()[0], processor.tokenizer
    (ids, _) = option_ids(model, processor, [], ["red red", "blue"])
    assert ids == [*tokenizer("red red", add_special_tokens=False).input_ids, 2]


def test_an_empty_option_is_refused() -> None:
    case = BY_NAME["llava"]
    with pytest.raises(ValueError, match=r"options of \[1, 0\] tokens: expected one prompt"):
        option_scores(case.model(), case.inputs([case.samples()[0]]), [[3], []])
