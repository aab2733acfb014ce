"""Adaptive budgets on models: what was promised is spent."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compress import CompressionError, Coverage, Shared, compress
from compress.methods import DivPrune, Foveate, Method, gains_of
from compress.ops import greedy
from compress.tokens import VisualTokens
from tests.compress.common import CLOSE, answer, duet, logits_of
from tests.compress.methods.cases import inputs
from tests.marks import later, over
from tests.tiny import CASES, Case
from vlm.families import adapter_of

LLAVA = next(case for case in CASES if case.name == "llava")


def counts(c: Any, number: int) -> list[int]:
    """Tokens of each of the first inputs that entered."""
    return [c.steps(index)[0][2].count for index in range(number)]


@over(CASES, ("llava",))
def test_a_mean_is_spent_exactly(case: Case) -> None:
    """As many tokens as the same budget lets in, of all inputs together, and other ones of each."""
    model, samples = case.model(), case.samples()
    given, number = case.inputs(samples), sum(len(sample.shown) for sample in samples)
    method = Foveate(layers=(case.stages[0],), ratios=(0.5,))
    with compress(model, method, 0.4) as fixed:
        answer(model, given)
    with compress(model, method, Shared(0.4)) as shared:
        answer(model, given)
    kinds = {kind for sample in samples for kind, *_ in sample.shown}
    if len(kinds) == 1:  # images and videos are encoded by calls of their own
        assert sum(counts(shared, number)) == sum(counts(fixed, number))
    assert counts(shared, number) != counts(fixed, number)
    # Each input rounds what is left of it from the stage on, by half a token at most.
    share = 1 - case.stages[0] / len(adapter_of(model).layers)
    assert shared.report().budget == pytest.approx(fixed.report().budget, abs=share / 2)


@pytest.mark.parametrize(
    "method", [DivPrune(), *later(duet(layers=(1,), ratios=(0.5,)))], ids=lambda m: type(m).__name__
)
def test_coverage_depends_on_the_input_alone(method: Method) -> None:
    """A batch gives each sample what it gets alone; a larger share keeps more."""
    model, samples, kept = LLAVA.model(), LLAVA.samples(), []
    for share in (0.5, 0.95, 1.0):
        with compress(model, method, Coverage(share)) as c:
            together = logits_of(model, LLAVA.inputs(samples))
            kept.append(sum(counts(c, 2)))
            alone = torch.cat([logits_of(model, LLAVA.inputs([one])) for one in samples])
        torch.testing.assert_close(together, alone, **CLOSE)
    assert kept[0] < kept[1] < kept[2]


def test_a_plain_picture_needs_fewer_tokens() -> None:
    draw = torch.Generator().manual_seed(0)
    plain = torch.randn(1, 1, 16, generator=draw) + 0.01 * torch.randn(1, 36, 16, generator=draw)
    plain[:, 17] += 3
    busy = torch.randn(1, 36, 16, generator=draw)
    grid = (1, 6, 6)
    curves = [gains_of(DivPrune(), VisualTokens(x, grid))[0] for x in (plain, busy)]
    needs = [Coverage(0.9).counts([curve.tolist()], [])[0] for curve in curves]
    assert needs[0] < needs[1]


def test_gains_are_those_of_the_greedy_order() -> None:
    tokens, method = inputs(b=2), Foveate()
    table = method.kernel(tokens, 4) * method.weights(tokens)[..., None]
    found, order = greedy.gains(table), greedy.cover(table, 36)
    for count in (1, 5, 36):
        some = order[:, None, :count].expand(-1, 36, -1)
        covered = table.gather(2, some).amax(2).sum(1)
        torch.testing.assert_close(found[:, :count].sum(1), covered, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gains_of(method, tokens).sum(1), torch.ones(2))


@pytest.mark.parametrize(
    ("budget", "method"), [(Shared(0.5), "fastv"), (Coverage(1), "downsample")]
)
def test_methods_that_keep_the_same_of_all_are_refused(budget: Any, method: str) -> None:
    with pytest.raises(CompressionError, match=r"budget (shared|coverage).*a count of its own"):
        compress(LLAVA.model(), method, budget)


def test_a_mean_above_the_dense_count_is_refused() -> None:
    with pytest.raises(ValueError, match="budget is 65"):
        compress(LLAVA.model(), "divprune", Shared(65))
