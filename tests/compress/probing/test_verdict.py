"""What follows from a probe: the horizon, the schedule, files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compress.methods import DivPrune, Duet, Method
from compress.probing.verdict import Effect, Probe, Row, probe_of
from compress.runtime.stages import allocate


def made(
    gone: list[float],
    halved: list[float],
    same: list[int],
    tokens: int = 100,
    same_halved: list[int] | None = None,
) -> Probe:
    """A probe of one prompt, from mean KL divergences and unchanged tokens a layer."""
    rows = Row(
        "0" * 16,
        tokens,
        Effect(tuple(kl * tokens for kl in gone), tuple(same)),
        Effect(tuple(kl * tokens for kl in halved), tuple(same_halved or [tokens] * len(gone))),
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


def counts(probe: Probe, method: Method, dense: int, budget: int | float) -> tuple[int, ...]:
    return allocate(method, (dense, 8), budget, None, probe).counts


def test_tokens_leave_where_the_probe_says_and_the_budget_is_met() -> None:
    probe = made(GONE, HALVED, SAME)
    for budget in (1 / 3, 1 / 9, 64, 10):
        seen = counts(probe, Duet(), 576, budget)
        target = budget * 576 if isinstance(budget, float) else budget
        assert abs(sum(seen) / 8 - target) <= 1
        half = seen[0] // 2
        assert seen == (seen[0],) * 2 + (half,) * 4 + (0,) * 2
    assert counts(probe, DivPrune(), 96, 0.25) == (32,) * 6 + (0,) * 2


def test_no_step_comes_before_the_layer_from_which_halving_is_harmless() -> None:
    probe = made(GONE, HALVED, SAME, same_halved=[50] * 5 + [100] * 3)
    assert probe.ready == 5
    seen = counts(probe, Duet(), 576, 64)
    assert seen == (seen[0],) * 5 + (seen[0] // 2, 0, 0)
    two = Duet(layers=(1, 2), ratios=(0.5, 0.25))
    seen = counts(probe, two, 576, 64)
    assert seen == (seen[0],) * 5 + (seen[0] // 4, 0, 0)


def test_a_model_that_reads_to_the_end_keeps_tokens_in_every_layer() -> None:
    reading = made(GONE, HALVED, [50] * 8)
    assert reading.horizon == 8
    assert counts(reading, Duet(), 576, 1 / 9) == Duet().allocate(576, 8, 1 / 9).counts
    published = counts(reading, Duet(variant="released"), 576, 1 / 9)
    assert published == Duet(variant="released").allocate(576, 8, 1 / 9).counts


def test_a_budget_that_needs_every_layer_drops_nothing() -> None:
    probe = made(GONE, HALVED, SAME)
    assert counts(probe, Duet(), 576, 1.0) == (576,) * 8
    assert counts(probe, DivPrune(), 100, 0.9) == (90,) * 8


def test_layers_that_cannot_be_pruned_at_are_left_out() -> None:
    probe = made(GONE, HALVED, SAME)
    seen = allocate(Duet(), (576, 8), 64, (3, 7), probe).counts
    assert seen == (seen[0],) * 3 + (seen[0] // 2,) * 4 + (0,)
    seen = allocate(Duet(), (576, 8), 64, (3, 5), probe).counts
    assert seen == (seen[0],) * 3 + (seen[0] // 2,) * 5


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
