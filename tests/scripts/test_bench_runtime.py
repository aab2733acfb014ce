"""The benchmark of the runtime counts and times every method, and reports the results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from scripts import bench_runtime
from scripts.bench_runtime import DENSE, build, counts_of, host_time, median_interval, prompt
from tests.device_counter import to_device


def test_the_stock_model_is_counted_as_it_is() -> None:
    """Two synchronisations in prefill and one a decoded token, whatever the batch."""
    model = to_device(build(depth=4, side=4, seed=0))
    for batch in (1, 3):
        counts = counts_of(model, DENSE, 0.5, prompt(batch, 4, seed=0))
        assert (counts["prefill"]["syncs"], counts["decode"]["syncs"]) == (2, 1)
        assert counts["prefill"]["copies"] == counts["decode"]["copies"] == 0
        assert sum(counts["prefill"]["syncs_by_line"].values()) == 2


def test_ratios_are_taken_within_a_round() -> None:
    """A clock that ticks once a call: every way takes one tick a round."""
    torch.set_num_threads(1)
    ticks = iter(range(1000))
    model = build(depth=4, side=4, seed=0)
    rows = host_time(
        model, [DENSE, "duet"], 0.5, prompt(1, 4, 0), 3, 2, 0, lambda: float(next(ticks))
    )
    assert [len(row["each_ms"]) for row in rows.values()] == [3, 3]
    assert rows["duet"]["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}


def test_median_interval() -> None:
    actual = median_interval([float(x) for x in range(101)], seed=0)
    assert actual["median"] == 50 and 30 < actual["low"] < 50 < actual["high"] < 70
    assert actual == median_interval([float(x) for x in range(101)], seed=0)


def test_it_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runtime"
    line = "--depth 4 --side 4 --rounds 2 --tokens 2 --batches 1,2 --methods duet"
    bench_runtime.main([*line.split(), "--budget", "0.5", "--out", str(out)])
    written = json.loads(out.with_suffix(".json").read_text())
    assert [(row["way"], row["batch"]) for row in written["counts"]] == [
        (way, batch) for batch in (1, 2) for way in (DENSE, "duet")
    ]
    assert written["settings"]["rounds"] == 2 and set(written["time"]) == {DENSE, "duet"}
    assert out.with_suffix(".png").is_file() and out.with_suffix(".md").is_file()
    assert "over the stock model" in capsys.readouterr().out
