"""Answering questions: inputs of the model, replies, and the configurations of a sweep."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compress.methods import Duet
from compress.parse import parse_budget, parse_method, split_list
from eval.answerers import ModelAnswerer, Question
from eval.arms import DENSE, Arm, restore
from tests.vlm import models
from vlm import Video
from vlm.embedded import mini
from vlm.embedded.scenes import draw, make_scene
from vlm.families import adapter_of
from vlm.fingerprint import fingerprint


@pytest.fixture(scope="module")
def parts() -> Any:
    return mini.build()


def video(frames: int = 3) -> Video:
    pixels = np.stack([np.asarray(draw(make_scene(seed, "val"))) for seed in range(frames)])
    times = np.arange(frames) / 2.0
    return Video(pixels, times, np.arange(frames) * 5, 10.0, 2.0, "drawn")


def test_a_batch_gives_each_question_what_it_gets_alone(parts: Any) -> None:
    answerer = ModelAnswerer(*parts, "mini")
    pictures = [draw(make_scene(seed, "val")) for seed in range(2)]
    questions = [
        Question("What does the sign say?", (pictures[0],), 5),
        Question("Where?", (pictures[1],), 5),
    ]
    together = answerer.answer(questions, Arm("duet", 16), seed=0)
    alone = [answerer.answer([q], Arm("duet", 16), seed=0)[0] for q in questions]
    assert [r.text for r in together] == [r.text for r in alone]
    assert together[0].rendered == "<s>USER: <image>\n What does the sign say? ASSISTANT:"
    figures = together[0].figures
    assert figures["dense"] == 144
    assert figures["tokens"] == pytest.approx(16, abs=1)
    assert figures["cache"] < figures["dense_cache"]
    assert figures["cache"] == pytest.approx(
        (alone[0].figures["cache"] + alone[1].figures["cache"]) / 2, rel=0.1
    )


def test_shared_prompts_give_the_same_answers(parts: Any) -> None:
    pictures = [draw(make_scene(seed, "val")) for seed in range(2)]
    texts = ["What does the sign say?", "Where?", "How many circles are there?"]
    questions = [Question(t, (p,), 5 + len(t) % 2) for p in pictures for t in texts]
    questions += [Question(text) for text in texts]  # no picture
    questions.append(Question("", (), 5, (pictures[0], texts[0])))
    alone = ModelAnswerer(*parts, "mini")
    shared = ModelAnswerer(*parts, "mini", share_prompts=True)
    wanted = [alone.answer([question], DENSE, 0)[0] for question in questions]
    calls: list[int] = []
    encoder: Any = adapter_of(parts[0]).vision_encoder
    handle = encoder.register_forward_hook(lambda *_: calls.append(1))
    found = shared.answer(questions, DENSE, 0)
    handle.remove()
    assert len(calls) == 3  # two pictures, and the one whose content is given
    assert [r.text for r in found] == [r.text for r in wanted]
    assert [r.rendered for r in found] == [r.rendered for r in wanted]
    assert shared.describe() == alone.describe() | {"prompts": "shared"}


def test_the_most_likely_option_is_said(parts: Any) -> None:
    model, processor = parts
    answerer = ModelAnswerer(model, processor, "mini", one_pass=True)
    picture = draw(make_scene(0, "val"))
    for options in (("red", "blue", "the red star"), ("top left", "top right")):
        question = Question("What?", (picture,), options=options)
        (reply,) = answerer.answer([question], DENSE, seed=0)
        scores = []
        for option in options:
            text = f"{reply.rendered} {option}</s>"
            given = processor(
                text=[text], images=[[picture]], add_special_tokens=False, return_tensors="pt"
            )
            ids = processor.tokenizer(f" {option}</s>", add_special_tokens=False).input_ids
            with torch.no_grad():
                logits = model(**given).logits[0, -len(ids) - 1 : -1].double().log_softmax(-1)
            scores.append(float(logits.gather(1, torch.tensor(ids)[:, None]).sum()))
        assert reply.text == options[scores.index(max(scores))]
    with pytest.raises(ValueError, match=r"2 questions of \[2, 2\] options: expected one"):
        answerer.answer([question, question], DENSE, seed=0)


def test_the_seed_decides_random_draws(parts: Any) -> None:
    answerer = ModelAnswerer(*parts, "mini")
    kept = []
    for seed in (1, 1, 2):
        with answerer._attached(Arm("random", 16), seed) as compression:
            _, inputs = answerer._prepare([Question("What?", (draw(make_scene(0)),))])
            with torch.inference_mode():
                answerer.model(**inputs)
            kept.append(compression.steps(0)[0][2].anchor.tolist())
    assert kept[0] == kept[1] != kept[2]


def test_a_video_is_its_frames_where_only_images_are_known() -> None:
    answerer = ModelAnswerer(*models.stock_llava(), "llava")
    (reply,) = answerer.answer([Question("Which?", (video(3),), 2)], DENSE, seed=0)
    assert reply.rendered.count("<image>") == 3
    assert reply.figures["frames"] == 3


def test_a_video_goes_whole_to_our_own_processor(parts: Any) -> None:
    answerer = ModelAnswerer(*parts, "mini")
    (reply,) = answerer.answer([Question("Which?", (video(3),), 2)], Arm("duet", 48), seed=0)
    assert reply.rendered.count("<video>") == 1 and "<image>" not in reply.rendered
    assert reply.figures["dense"] == 3 * 144


def test_a_video_goes_to_a_video_processor_with_its_times(parts: Any) -> None:
    model, processor = parts
    seen: dict[str, Any] = {}

    class Processor:
        chat_template, tokenizer, video_processor = "x", processor.tokenizer, object()

        def apply_chat_template(self, messages: Any, **options: Any) -> str:
            seen["content"] = messages[0]["content"]
            return "text"

        def __call__(self, **options: Any) -> Any:
            seen.update(options)
            return processor(text=["<image>"], images=[draw(make_scene(0))], return_tensors="pt")

    answerer = ModelAnswerer(model, Processor(), "fake")
    answerer._prepare([Question("Which?", (video(3),))])
    assert [part["type"] for part in seen["content"]] == ["video", "text"]
    (frames,) = seen["videos"]
    assert tuple(frames.shape) == (3, 3, 96, 96)
    (metadata,) = seen["video_metadata"]
    assert metadata.timestamps == [0.0, 0.5, 1.0]
    assert seen["do_sample_frames"] is False
    assert "images" not in seen


def test_texts_and_pictures_in_their_order(parts: Any) -> None:
    picture = draw(make_scene(0))
    question = Question("", (), 2, ("Before", picture, "after"))
    (reply,) = ModelAnswerer(*parts, "mini").answer([question], DENSE, seed=0)
    assert reply.rendered == "<s>USER: Before <image>\n after ASSISTANT:"


def test_a_processor_without_a_template_is_refused(parts: Any) -> None:
    class Bare:
        chat_template = None

    with pytest.raises(ValueError, match="no chat template"):
        ModelAnswerer(parts[0], Bare(), "bare")


def test_the_fingerprint_is_of_the_weights() -> None:
    first, second = torch.nn.Linear(40, 3), torch.nn.Linear(40, 3)
    assert fingerprint(first) != fingerprint(second)
    second.load_state_dict(first.state_dict())
    assert fingerprint(first) == fingerprint(second)
    with torch.no_grad():
        second.weight[0, 0] += 1e-6
    assert fingerprint(first) != fingerprint(second)


@pytest.mark.parametrize(
    ("text", "budget"), [("64", 64), ("0.25", 0.25), ("1/9", 1 / 9), ("11%", 0.11), ("1.0", 1.0)]
)
def test_budgets(text: str, budget: float) -> None:
    parsed = parse_budget(text)
    assert (parsed, type(parsed)) == (budget, type(budget))


@pytest.mark.parametrize("text", ["", "x", "1/0", "%", "64 tokens"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(ValueError, match="expected a count such as 64"):
        parse_budget(text)


def test_methods_with_options() -> None:
    assert parse_method("duet") == "duet"
    assert parse_method("duet(query='last')") == Duet(query="last")
    assert parse_method("Duet(query='last')") == Duet(query="last")
    assert split_list("duet, random(seed=1),duet(query='all')") == [
        "duet",
        "random(seed=1)",
        "duet(query='all')",
    ]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("nothing", "expected one of"),
        ("nothing()", "known methods"),
        ("duet(quarry=1)", "quarry"),
        ("duet(1)", "with options such as"),
        ("duet(query=print())", "with options such as"),
        ("duet(query='x')", "query is 'x'"),
    ],
)
def test_what_is_no_method(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        parse_method(text)


@pytest.mark.parametrize("budget", [0, -1, 1.5, float("nan")])
def test_an_arm_has_a_budget_that_can_be(budget: float) -> None:
    with pytest.raises(ValueError, match="budget"):
        Arm("duet", budget)


@pytest.mark.parametrize(
    "arm",
    [
        DENSE,
        Arm("duet", 64),
        Arm(Duet(query="last"), 0.5),
        Arm("random", 8, "compact"),
        Arm("pool", 8, slots=4, layout="strided"),
    ],
)
def test_an_arm_comes_back_from_its_description(arm: Arm) -> None:
    assert restore(arm.describe()) == arm


def test_positions_may_be_a_scheme(parts: Any) -> None:
    answerer = ModelAnswerer(*parts, "mini")
    _, inputs = answerer._prepare([Question("What?", (draw(make_scene(0)),))])
    logits = []
    for place in ("original", "mrope", "v2pe:1/4"):
        with answerer._attached(Arm("pool", 16, place), 0), torch.inference_mode():
            logits.append(answerer.model(**inputs).logits[:, -1])
    torch.testing.assert_close(logits[0], logits[1])  # the model's own scheme
    assert not torch.allclose(logits[0], logits[2])
    with pytest.raises(ValueError, match="or 'original', 'median', 'compact'"):
        Arm("pool", 16, "nowhere")


def test_slots_change_where_merged_tokens_stand(parts: Any) -> None:
    answerer = ModelAnswerer(*parts, "mini")
    _, inputs = answerer._prepare([Question("What?", (draw(make_scene(0)),))])
    logits = []
    for arm in (Arm("pool", 16), Arm("pool", 16, slots=4), Arm("pool", 16, slots=4)):
        with answerer._attached(arm, 0), torch.inference_mode():
            logits.append(answerer.model(**inputs).logits[:, -1])
    assert not torch.allclose(logits[0], logits[1])
    assert torch.equal(logits[1], logits[2])
    assert len({Arm("pool", 16).folder, Arm("pool", 16, slots=4).folder}) == 2
