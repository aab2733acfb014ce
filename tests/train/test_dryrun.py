"""A dry run reports parameter groups, tokens and memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train import small
from train.__main__ import main


def test_dry_run_tells_groups_tokens_and_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, media = small.write_data(tmp_path)
    base = small.write_base(tmp_path / "base")
    line = ["mini", "--dry-run", "--processes", "2", "--model", str(base), "--data", str(data)]
    line += ["--media", str(media), "compress.budget=10", "optimizer.batch=32"]
    assert main(line) == 0
    said = capsys.readouterr().out
    assert "a step: 2 processes x 8 samples x 2 forwards = 32 samples" in said
    assert "visual tokens an image: 16 dense, 10 on average over 4 layers" in said
    for word in ("budget: 10", "language_model", "tokens a step", "optimizer", "GiB"):
        assert word in said
