"""The examples run unchanged, without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
IN_VLLM = ("replay_in_vllm", "serve")  # run by make serve-test
RUN_HERE = [path for path in EXAMPLES if path.stem not in IN_VLLM]
SAYS = {"finetune_deepspeed": "saved to", "sweep": "report.html has the table"}


@pytest.mark.slow
@pytest.mark.parametrize("path", RUN_HERE, ids=lambda path: path.stem)
def test_runs(path: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert SAYS.get(path.stem, "visual tokens an input") in done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60
