"""The benchmark of a training step runs and reports its measurements."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from scripts import bench_train


@pytest.mark.slow
def test_it_measures_every_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vision, text = ({**part, "num_hidden_layers": 4} for part in bench_train.SIZES["small"])
    vision |= {"hidden_size": 32, "intermediate_size": 32}
    text |= {"hidden_size": 128, "intermediate_size": 32}
    monkeypatch.setitem(bench_train.SIZES, "small", (vision, text))
    out = tmp_path / "bench"
    line = ["bench_train", "--batch", "1", "--text", "40", "--rounds", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", line)
    bench_train.main()
    rows = json.loads(out.with_suffix(".json").read_text())["rows"]
    assert set(rows) == set(bench_train.SETTINGS)
    assert rows["duet 64"]["tokens"] == pytest.approx(64, abs=1)
    assert all(row["seconds"] > 0 and row["bytes"] > 0 for row in rows.values())
    assert out.with_suffix(".png").is_file()
