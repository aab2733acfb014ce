"""What follows from a probe: the horizon, the schedule, files."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest

from compress.errors import CompressionError
from compress.methods import Cascade, DivPrune, Downsample, Duet, FastV
from compress.probing.verdict import RATIOS, Effect, Probe, Row, probe_of


def made(gone: list[float], halved: list[float], same: list[int], tokens: int = 100) -> Probe:
    """A probe of one prompt, from mean KL divergences and unchanged tokens a layer."""
    rows = Row(
        "0" * 16,
        tokens,
        Effect(tuple(kl * tokens for kl in gone), tuple(same)),
        Effect(tuple(kl * tokens for kl in halved), (tokens,) * len(gone)),
    )
    return Probe("f" * 16, "llama-8x32", "model", len(gone), (rows,))


GONE = [4.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.004, 0.001]
HALVED = [1.0, 1.0, 0.7, 0.5, 0.25, 0.1, 0.001, 0.0]
SAME = [10, 10, 20, 40, 60, 80, 98, 100]


def test_the_horizon_is_where_answers_stay_the_same_from_then_on() -> None:
    assert made(GONE, HALVED, SAME).horizon == 6
    assert made(GONE, HALVED, [100, 100, 100, 97, 100, 100, 100, 100]).horizon == 4
    assert made(GONE, HALVED, [100] * 8).horizon == 1
    assert made(GONE, HALVED, [100] * 7 + [97]).horizon == 8


def test_no_token_before_the_horizon_is_dropped_and_the_budget_is_met() -> None:
    probe = made(GONE, HALVED, SAME)
    for budget in (1 / 3, 1 / 9, 64, 10):
        allocation = probe.allocate(Duet(), 576, budget)
        target = budget * 576 if isinstance(budget, float) else budget
        assert abs(allocation.average - target) <= 1
        assert all(allocation.counts[: probe.horizon])
        assert allocation.counts[-1] == 0
    reading = made(GONE, HALVED, [50] * 8)
    assert reading.horizon == 8 and all(reading.allocate(Duet(), 576, 1 / 9).counts)


def test_the_schedule_loses_least_of_all_that_were_compared() -> None:
    """Every schedule of two steps is tried by brute force, layer by layer."""
    probe = made(GONE, HALVED, SAME)
    weights, exponent = probe.damage
    steps = [(layer, ratio) for layer in range(1, 8) for ratio in (*RATIOS, 0.0)]

    def loss(pairs: tuple[tuple[int, float], ...], share: float) -> float:
        ratios = [1.0] * 8
        for layer, ratio in sorted(pairs):
            ratios[layer:] = [ratio] * (8 - layer)
        if any(ratio == 0 for ratio in ratios[: probe.horizon]):
            return float("inf")
        enters = share * 8 / sum(ratios)
        if enters > 1:
            return float("inf")
        return sum(w * (1 - enters * r) ** exponent for w, r in zip(weights, ratios, strict=True))

    pairs = [(a, b) for a, b in product(steps, steps) if a[0] < b[0] and a[1] > b[1]]
    for share in (0.1, 0.3, 0.6, 0.9):
        best = min(loss(s, share) for s in [(), *((step,) for step in steps), *pairs])
        assert loss(probe._best(share, range(1, 8)), share) == pytest.approx(best)


def test_layers_that_read_nothing_get_nothing() -> None:
    gone, halved = [5.0] * 4 + [0.0] * 4, [1.0] * 4 + [0.0] * 4
    probe = made(gone, halved, [0] * 4 + [100] * 4)
    assert probe.horizon == 4
    assert probe.allocate(DivPrune(), 100, 0.25).counts == (50, 50, 50, 50, 0, 0, 0, 0)


def test_a_full_budget_keeps_all() -> None:
    assert made(GONE, HALVED, SAME).allocate(Duet(), 576, 1.0).counts == (576,) * 8


@pytest.mark.parametrize("method", [FastV(), Downsample(), Cascade(before=False)])
def test_methods_with_counts_of_their_own_are_refused(method: object) -> None:
    with pytest.raises(CompressionError, match="takes no schedule but its own"):
        made(GONE, HALVED, SAME).check(method)  # type: ignore[arg-type]


def test_it_comes_back_from_its_file(tmp_path: Path) -> None:
    probe = made(GONE, HALVED, SAME)
    assert Probe.find("llama-8x32", "f" * 16, tmp_path) is None
    assert not Probe.known("llama-8x32", tmp_path)
    path = probe.save(tmp_path)
    assert Probe.load(path) == probe == Probe.find("llama-8x32", "f" * 16, tmp_path)
    assert Probe.known("llama-8x32", tmp_path) and not Probe.known("llama-8x3", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("change", ["", "{}", '{"rows": 3}', "short", "[]"])
def test_a_broken_file_is_refused(tmp_path: Path, change: str) -> None:
    path = made(GONE, HALVED, SAME).save(tmp_path)
    facts = json.loads(path.read_text())
    facts["rows"][0]["gone"]["kl"].pop()
    path.write_text(json.dumps(facts) if change == "short" else change)
    with pytest.raises(ValueError, match="is no saved probe"):
        Probe.load(path)


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(ValueError, match="schedule is 'probe': expected 'probed', a Probe or None"):
        probe_of("probe", None)  # type: ignore[arg-type]


def test_it_is_printed_and_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    probe = made(GONE, HALVED, SAME)
    assert "Visual tokens can be dropped from layer 6 on." in str(probe)
    assert "never all dropped" in str(made(GONE, HALVED, [50] * 8))
    probe.draw(tmp_path / "deep" / "probe.png")
    assert (tmp_path / "deep" / "probe.png").read_bytes().startswith(b"\x89PNG")
