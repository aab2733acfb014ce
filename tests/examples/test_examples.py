"""The examples run unchanged, without a network."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from scripts.notebooks import notebook, written

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
def test_its_notebook_is_made_from_it(path: Path) -> None:
    made = path.parent / "notebooks" / f"{path.stem}.ipynb"
    assert made.read_text(encoding="utf-8") == written(path), "run python -m scripts.notebooks"


@pytest.mark.slow
def test_cells_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("cells")
    monkeypatch.setitem(sys.modules, "cells", module)  # where dataclasses look type hints up
    for cell in notebook(ROOT / "examples" / "own_method.py")["cells"]:
        if cell["cell_type"] == "code":
            exec(cell["source"], vars(module))
    assert (tmp_path / "outliers.png").is_file()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60
