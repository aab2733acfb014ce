"""`set_budget` on an attached compression."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compress import compress
from tests.tiny import CASES

CASE = CASES[0]


@pytest.mark.parametrize("method", ["duet", "fastv", "divprune"])
def test_later_prompts_follow_it(method: str) -> None:
    """As if the model had been compressed anew, there and back."""
    model, given = CASE.model(), CASE.inputs(CASE.samples())
    wanted = {}
    with torch.no_grad():
        for budget in (16, 40, 0.1):
            with compress(model, method, budget=budget):
                wanted[budget] = model(**given).logits
        with compress(model, method, budget=16) as c:
            for budget in (16, 40, 0.1, 16):
                c.set_budget(budget)
                assert torch.equal(model(**given).logits, wanted[budget])
    assert not torch.equal(wanted[16], wanted[40])


@pytest.mark.parametrize(
    ("bad", "kind"),
    [(0, ValueError), (65, ValueError), (1.5, ValueError), (float("nan"), ValueError),
     ("64", TypeError), (True, TypeError), (None, TypeError)],
)  # fmt: skip
def test_a_bad_one_is_refused_and_the_old_one_stays(bad: Any, kind: type[Exception]) -> None:
    model, given = CASE.model(), CASE.inputs(CASE.samples()[:1])
    with torch.no_grad(), compress(model, "duet", budget=16) as c:
        wanted = model(**given).logits
        with pytest.raises(kind, match="budget"):
            c.set_budget(bad)
        assert torch.equal(model(**given).logits, wanted)
        assert c.report().budget == pytest.approx(16, abs=0.5)
