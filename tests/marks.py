"""Which combinations of parameters the quick suite runs; the slow suite runs the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from tests.tiny import CASES, Case

QUICK = ("llava", "qwen2_5_vl", "foveate")  # one axis, three axes, blocks of several experts


def later(*values: Any) -> list[Any]:
    """Values of one parameter that the slow suite runs alone."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def over(cases: Iterable[Case], quick: Iterable[str] | None = None) -> Any:
    """A parameter `case` over families; those that are not quick run in the slow suite alone.

    quick: names of the quick ones, by default those that say so.
    """
    values = [
        case if (case.quick if quick is None else case.name in quick) else later(case)[0]
        for case in cases
    ]
    return pytest.mark.parametrize("case", values, ids=lambda case: case.name)


each_case = over(CASES)
some_cases = over(CASES, QUICK)
# Where what follows a prompt is as what is in it: not where a prompt has two-way attention.
some_continuing_cases = over([case for case in CASES if case.two_way != "prompt"], QUICK)
# Qwen3.5's state cannot be cropped, and the stock model refuses to; a convolution's can. The stock
# ERNIE has experts for the tokens of the prompt alone, and fails on candidates.
_NOT_CROPPABLE = ("qwen3_5", "qwen3_5_moe", "minicpmv4_6", "ernie4_5_vl_moe")
some_croppable_cases = over(
    [case for case in CASES if case.two_way != "prompt" and case.name not in _NOT_CROPPABLE],
    QUICK,
)
# The stock Llama 4 does not repeat features for the beams of a prompt.
each_beam_case = over([case for case in CASES if case.name != "llama4"])
# Whose forward has no `logits_to_keep`, by which candidates are told from the prompt: they rank
# visual tokens in the language model, too.
CANDIDATES_RANK = ("video_llama_3", "qwen2_5_omni", "qwen3_omni_moe")
# Some stock models look at weights that are elsewhere, outside of the forward that they are for.
some_offloaded_cases = over(
    [
        c
        for c in CASES
        if c.name not in ("glm4v", "glm46v", "glm4v_moe", "glm_ocr", "idefics3", "lfm2_vl")
        and c.name != "minicpmv4_6"
        and not c.by_timm
    ],
    QUICK,
)
# For a static cache, generate makes a mask for each kind of layer, which the stock PaliGemma 2 does
# not take.
some_static_cases = over([case for case in CASES if case.name != "paligemma2"], QUICK)
