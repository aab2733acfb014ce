"""Questions on one cache, against the whole conversation as one prompt."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

import vlm
from compress import compress
from compress.methods import Duet
from eval.answerers import ModelAnswerer, Question
from eval.arms import DENSE, Arm
from eval.turns import Talk, follow_up
from tests.tiny import CASES
from vlm.embedded.scenes import draw, make_scene

BY_NAME = {case.name: case for case in CASES}
ASKED = ("What does the sign say?", "What colour is the circle?", "How many squares are there?")
PRE_LLM = Duet(layers=(), ratios=())  # in the LLM, the whole prompt would be cut for its end


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "foveate"])
def test_later_turns_are_what_one_prompt_gives(name: str, reduced: bool) -> None:
    case = BY_NAME[name]
    model, sample = case.model(), case.samples()[2]
    turns = [torch.tensor([[9, 14, 21]]), torch.tensor([[33, 40]])]
    with compress(model, PRE_LLM, budget=case.budget) if reduced else nullcontext():
        talk, whole = Talk(model, (), reduced), sample.ids
        said = talk.ask(case.inputs([sample]), 4)
        for ids in turns:
            whole = torch.cat([whole, torch.tensor(said), ids[0]])
            said = talk.ask({"input_ids": ids}, 3)
            given = case.inputs([type(sample)(whole, sample.shown)])
            out = model.generate(**given, max_new_tokens=3, do_sample=False, eos_token_id=None)
            assert said == out[0, len(whole) :].tolist()


def test_an_answer_ends_and_the_next_turn_begins_after_it() -> None:
    case = BY_NAME["llava"]
    model, sample = case.model(), case.samples()[0]
    free = Talk(model, (), False).ask(case.inputs([sample]), 4)
    talk = Talk(model, {free[1]}, False)
    assert talk.ask(case.inputs([sample]), 4) == free[: free.index(free[1]) + 1]


@pytest.mark.parametrize("arm", [DENSE, Arm("foveate", 1 / 3)], ids=["dense", "reduced"])
def test_questions_with_earlier_ones(arm: Arm) -> None:
    model, processor = vlm.load("mini")
    answerer = ModelAnswerer(model, processor, "mini")
    picture = draw(make_scene(3, "val"))
    alone = answerer.answer([Question(text, (picture,), 6) for text in ASKED], arm, 0)
    question = Question(ASKED[2], (picture,), 6, earlier=ASKED[:2])
    (later,) = answerer.answer([question], arm, 0)
    assert later.rendered == "\n".join([alone[0].rendered, *ASKED[1:]])
    assert later.figures.keys() == alone[2].figures.keys()
    if arm.method is not None:
        assert later.figures["tokens"] == pytest.approx(48, abs=2)
    said = processor.tokenizer.decode(follow_up(processor, ASKED[1])[0])
    assert said.endswith(f"USER: {ASKED[1]} ASSISTANT:") and "answer" not in said
