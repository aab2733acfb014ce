"""Answers of branches of one prompt, against those of whole prompts."""

from __future__ import annotations

import pytest
import torch

from eval.branches import greedy_answers, shared_length
from tests.tiny import CASES

BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "foveate"])
def test_each_ending_gets_what_it_gets_by_itself(name: str) -> None:
    case = BY_NAME[name]
    model, sample = case.model(), case.samples()[2]
    endings = [torch.tensor(ids) for ids in ([9, 14, 21], [33], [9, 7, 40, 12, 11])]
    limits = [5, 3, 4]
    alone = []
    for ending, most in zip(endings, limits, strict=True):
        whole = case.inputs([type(sample)(torch.cat([sample.ids, ending]), sample.shown)])
        out = model.generate(**whole, max_new_tokens=most, do_sample=False, eos_token_id=None)
        alone.append(out[0, whole["input_ids"].shape[1] :].tolist())
    inputs = case.inputs([sample])
    assert greedy_answers(model, inputs, endings, limits, ()) == alone
    stop = alone[0][1]
    stopped = [ids[: ids.index(stop) + 1] if stop in ids else ids for ids in alone]
    assert greedy_answers(model, inputs, endings, limits, {stop}) == stopped != alone


def test_what_rows_begin_with() -> None:
    rows = [torch.tensor(ids) for ids in ([1, 2, 3, 4], [1, 2, 5], [1, 2, 3, 9, 9])]
    assert shared_length(rows) == 2
    assert shared_length(rows[:1]) == 3  # something is left to read
    assert shared_length([torch.tensor([1, 2]), torch.tensor([3, 2])]) == 0
