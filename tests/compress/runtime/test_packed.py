"""Samples packed one after another in a row get what each gets alone (training, no cache)."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from compress import compress
from compress.methods import Method, Random
from positions import V2PE
from tests.compress.common import CLOSE, duet
from tests.marks import over
from tests.tiny import CASES, Case, Sample

# One plans the positions of whole rows by itself; training refuses to pack for it. A state would
# run on from sample to sample.
PACKING = [case for case in CASES if case.name != "foveate" and not case.recurrent]
BOTH = duet(layers=(1, 3), ratios=(0.6, 0.3))
SALIENT = duet(layers=(1, 3), ratios=(0.6, 0.3), query="salient")
BY_FAMILY: dict[str, tuple[Method, float, Any]] = {
    "keep all": (Random(), 1.0, "original"),
    "both": (BOTH, 0.3, "original"),
}
OTHER: dict[str, tuple[Method, float, Any]] = {
    "salient": (SALIENT, 0.3, "original"),
    "compact": (BOTH, 0.3, "compact"),
    "v2pe": (BOTH, 0.3, V2PE(1 / 4)),
}


def places(case: Case, model: Any, sample: Sample) -> Tensor:
    """(1, S), or (4, 1, S) with text positions in front, of one sample."""
    line = torch.arange(len(sample.ids))[None]
    core = case.core(model)
    if not hasattr(core, "get_rope_index"):
        return line
    given = case.inputs([sample])
    given["second_per_grids"] = given.get("video_second_per_grid")  # the thinkers' name for it
    known = inspect.signature(core.get_rope_index).parameters
    axes, _ = core.get_rope_index(**{k: given[k] for k in known.keys() & given.keys()})
    return torch.cat([line[None], axes])


def check(case: Case, method: Method, budget: float, positions: Any, attention: str) -> None:
    model = case.model(attention)
    samples = [*case.samples(), case.sample([6], seed=9)]
    row = Sample(
        torch.cat([sample.ids for sample in samples]),
        tuple(visual_input for sample in samples for visual_input in sample.shown),
    )
    packed: dict[str, Any] = case.inputs([row])
    del packed["attention_mask"]
    packed["position_ids"] = torch.cat([places(case, model, s) for s in samples], dim=-1)
    labels = [torch.full_like(sample.ids, -100) for sample in samples]
    for sample_labels, sample in zip(labels, samples, strict=True):
        sample_labels[-1] = sample.ids[-1]
    with compress(model, method, budget, positions=positions), torch.no_grad():
        actual = model(**packed, labels=torch.cat(labels)[None], use_cache=False).logits[0]
        wanted = [
            model(**case.inputs([s]), labels=sample_labels[None], use_cache=False).logits[0]
            for s, sample_labels in zip(samples, labels, strict=True)
        ]
    for got, alone in zip(actual.split([len(x) for x in wanted]), wanted, strict=True):
        torch.testing.assert_close(got, alone, **CLOSE)


@pytest.mark.parametrize("setting", BY_FAMILY)
@over(PACKING)
def test_packed_samples_get_what_they_get_alone(case: Case, setting: str) -> None:
    check(case, *BY_FAMILY[setting], attention="sdpa")


@pytest.mark.parametrize("setting", OTHER)
def test_packed_with_other_queries_and_positions(setting: str) -> None:
    check(CASES[0], *OTHER[setting], attention="eager")
