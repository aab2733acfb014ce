"""Configurations of a sweep: names, folders, and descriptions that read back the same."""

from __future__ import annotations

import pytest

from compress import Shared
from compress.methods import Duet
from eval.arms import DENSE, Arm, restore

DUET = Arm("duet", 64)


def test_arms_have_folders_of_their_own() -> None:
    arms = [DENSE, DUET, Arm("duet", 0.5), Arm("duet", 64, "compact"), Arm(Duet(query="last"), 64)]
    arms += [Arm(served="duet, keep 48"), Arm(served="dense")]
    assert len({arm.folder for arm in arms}) == len(arms)
    assert Arm("duet", 64).folder.startswith("duet-64-")


@pytest.mark.parametrize(
    "arm",
    [
        DENSE,
        DUET,
        Arm("duet", 0.5, "compact"),
        Arm(Duet(query="last"), 64),
        Arm("pool", 9, slots=4),
        Arm("duet", 64, "median", schedule="probed", calibrate="size+distance"),
        Arm("divprune", 64, keep_phase=0.05),
        Arm(served="duet, keep 48"),
    ],
    ids=lambda arm: arm.title,
)
def test_a_description_reads_back_the_same(arm: Arm) -> None:
    assert restore(arm.describe()) == arm


def test_adaptive_budgets_are_lines_of_their_own() -> None:
    fixed, shared = Arm("duet", 1 / 9), Arm("duet", Shared(1 / 9))
    assert (fixed.line, shared.line) == ("duet", "duet shared")
    assert shared.title == "duet shared:0.1111"
    assert fixed.amount == shared.amount == 1 / 9
    assert restore(shared.describe()) == shared


def test_what_cannot_be_is_refused_at_once() -> None:
    for wrong in (
        {"method": "nothing"},
        {"budget": 1.5},
        {"positions": "nowhere"},
        {"calibrate": "on"},
    ):
        with pytest.raises(ValueError):
            Arm(**({"method": "duet", "budget": 64} | wrong))
