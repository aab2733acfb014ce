"""Tokens at extreme rotary phases stay, whatever the method keeps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from compress import CompressionError, compress
from compress.methods import ChatUniVi, DivPrune, FastV, Method, Pool, VisionZip
from compress.runtime.phases import phase_order
from positions import ChannelTable
from positions.channels import inverse_frequencies
from tests.compress.common import CLOSE, answer, duet, logits_of
from tests.marks import later, over
from tests.tiny import CASES, Case
from vlm.families import adapter_of

LLAVA = next(case for case in CASES if case.name == "llava")


def extremes(rotary: Any, positions: torch.Tensor, share: float) -> set[int]:
    """IVC's set: the largest mean cosines and the largest mean sines, by loops."""
    table, frequency = ChannelTable.of(rotary), inverse_frequencies(rotary).double()
    axes = table.axis.tolist()
    frequency = (frequency if table.frequency is None else frequency[table.frequency]).tolist()
    cos, sin = [], []
    for own in positions.tolist():
        angles = [own[axis] * f for axis, f in zip(axes, frequency, strict=True)]
        cos.append(np.mean(np.cos(angles)))
        sin.append(np.mean(np.sin(angles)))
    count = math.ceil(share * len(cos))
    found: set[int] = set()
    for values in (cos, sin):
        found |= set(sorted(range(len(values)), key=lambda i: (-values[i], i))[:count])
    return found


@over(CASES, ("llava", "qwen2_5_vl"))
@pytest.mark.parametrize(
    "method", [VisionZip(), *later(DivPrune())], ids=lambda m: type(m).__name__
)
def test_the_extremes_are_kept_within_the_budget(case: Case, method: Method) -> None:
    """Methods before and after the projector; one axis of positions, and three."""
    model, samples = case.model(), case.samples()
    given, number = case.inputs(samples), sum(len(sample.shown) for sample in samples)
    rotary = adapter_of(model).rotary
    with compress(model, method, 0.5) as plain:
        answer(model, given)
    with compress(model, method, 0.5, keep_phase=0.05) as c:
        answer(model, given)
    with compress(model, "random", 1.0) as whole:
        answer(model, given)
    changed = False
    for index in range(number):
        kept, before = c.steps(index)[0][2], plain.steps(index)[0][2]
        kept.validate()
        assert kept.count == before.count
        assert bool((kept.anchor.diff() > 0).all())
        positions = whole._last().positions_of(index)[:, 0].cpu()
        wanted = extremes(rotary, positions, 0.05)
        assert wanted <= set(kept.anchor[0].tolist())
        changed = changed or not wanted <= set(before.anchor[0].tolist())
        standing = c._last().positions_of(index)[:, 0].cpu()
        torch.testing.assert_close(standing, positions[kept.anchor[0].cpu()])
    assert changed


def test_tokens_that_leave_a_merge_enter_as_they_are() -> None:
    model, given = LLAVA.model(), LLAVA.inputs(LLAVA.samples()[:1])
    with compress(model, "random", 1.0) as whole:
        answer(model, given)
    with compress(model, Pool(), 0.5, keep_phase=0.05) as c:
        answer(model, given)
    kept, dense = c.steps(0)[0][2], whole._last().features_of(0)
    torch.testing.assert_close(c._last().features_of(0), kept.features[0])
    single = kept.size[0] == 1
    order = phase_order(adapter_of(model).rotary, whole._last().positions_of(0)[:, 0])
    first = (kept.anchor[0] == order[0]).nonzero().item()
    assert single[first]
    torch.testing.assert_close(kept.features[0, first], dense[order[0]])
    assert int(kept.size.sum()) == kept.assign.shape[1]


def test_a_batch_gives_each_sample_what_it_gets_alone() -> None:
    model, samples = LLAVA.model(), LLAVA.samples()
    method = duet(layers=(1,), ratios=(0.5,))
    with compress(model, method, 0.5, keep_phase=0.05):
        together = logits_of(model, LLAVA.inputs(samples))
        alone = torch.cat([logits_of(model, LLAVA.inputs([one])) for one in samples])
    torch.testing.assert_close(together, alone, **CLOSE)


def test_what_cannot_be_kept_is_refused() -> None:
    model, given = LLAVA.model(), LLAVA.inputs(LLAVA.samples())
    with (
        compress(model, DivPrune(), 2, keep_phase=0.3),
        pytest.raises(ValueError, match=r"keep_phase is 0.3, which keeps .* 2 enter"),
    ):
        answer(model, given)
    for method in (FastV(), ChatUniVi()):
        with pytest.raises(CompressionError, match="keep_phase adds tokens"):
            compress(model, method, 0.5, keep_phase=0.05)
    with pytest.raises(CompressionError, match="keeps tokens for their positions"):
        compress(model, "divprune", 0.5, positions="compact", keep_phase=0.05)
    for wrong in (0.5, -0.1, math.nan):
        with pytest.raises(ValueError, match="keep_phase is"):
            compress(model, "divprune", 0.5, keep_phase=wrong)
    with pytest.raises(TypeError, match="keep_phase is True"):
        compress(model, "divprune", 0.5, keep_phase=True)
