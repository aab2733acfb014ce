"""A second picture in a later turn under M-RoPE, for which users pass the new ids only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from compress import compress
from compress.methods import Duet, Method, Random
from tests.compress.common import CLOSE, NEW, answer, logits_of
from tests.tiny import CASES, FIRST_WORD, Case, Sample

HOSTS = [case for case in CASES if case.name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")]
METHODS: dict[str, Method] = {"keep all": Random(), "pre-LLM": Duet(layers=(), ratios=())}
each_host = pytest.mark.parametrize("case", HOSTS, ids=lambda case: case.name)


def positions_in(model: Any, run: Any) -> list[Tensor]:
    """(axes, S) positions that the rotary embedding is given in each forward of `run`."""
    positions_seen: list[Tensor] = []
    rotary = model.model.language_model.rotary_emb

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        positions_seen.append(kwargs.get("position_ids", args[-1])[-3:, 0].float())

    handle = rotary.register_forward_pre_hook(look, with_kwargs=True)
    run()
    handle.remove()
    return positions_seen


@each_host
@pytest.mark.parametrize("by_generate", [True, False], ids=["generate", "forward"])
@pytest.mark.parametrize("name", METHODS)
def test_a_second_picture_equals_one_prompt_with_both(
    case: Case, name: str, by_generate: bool
) -> None:
    """Text is generated in between; positions of the second picture are those of its grid."""
    model, method = case.model(), METHODS[name]
    budget = case.budget if name == "pre-LLM" else 1.0
    one, two = case.sample((3, ("image", "a"), 5)), case.sample((4, ("image", "b"), 6), seed=1)
    with compress(model, method, budget=budget), torch.no_grad():
        first = answer(model, case.inputs([one]), suppress_tokens=list(range(FIRST_WORD)))
        said = first.sequences[0, -NEW:]
        turn = Sample(torch.cat([said[-1:], two.ids]), two.shown)
        whole = Sample(torch.cat([one.ids, said, two.ids]), one.shown + two.shown)
        mask = torch.ones(1, len(whole.ids), dtype=torch.int64)
        given = case.inputs([turn]) | {
            "attention_mask": mask,
            "past_key_values": first.past_key_values,
        }
        results: list[Tensor] = []

        def run(inputs: dict[str, Any]) -> None:
            if by_generate:
                results.append(logits_of(model, inputs))
            else:
                results.append(model(**inputs).logits[:, -1:])

        in_turns = positions_in(model, lambda: run(given))
        at_once = positions_in(model, lambda: run(case.inputs([whole])))
    new = in_turns[0].shape[-1]
    torch.testing.assert_close(in_turns[0], at_once[0][:, -new:], rtol=0, atol=0)
    torch.testing.assert_close(*results, **CLOSE)


@each_host
def test_text_after_the_second_picture_stands_where_it_would(case: Case) -> None:
    """In the turn after: words alone, on the cache of both."""
    model = case.model()
    parts = [case.sample((3, ("image", "a"), 5)), case.sample((4, ("image", "b"), 6), seed=1)]
    parts.append(case.sample([5], seed=2))
    with compress(model, METHODS["pre-LLM"], budget=case.budget), torch.no_grad():
        ids = torch.cat([part.ids for part in parts])
        shown = parts[0].shown + parts[1].shown
        at_once = model(**case.inputs([Sample(ids, shown)])).logits[0, -1]
        cache, seen = None, 0
        for part in parts:
            seen += len(part.ids)
            given = case.inputs([part]) | {"attention_mask": torch.ones(1, seen).long()}
            out = model(**given, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
    torch.testing.assert_close(out.logits[0, -1], at_once, **CLOSE)
