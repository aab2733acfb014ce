"""The examples run unchanged, without a network."""

from __future__ import annotations

import contextlib
import os
import signal
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
# Seconds until one counts as hanging: DeepSpeed compiles kernels when it first runs on CPUs, which
# takes minutes on a busy machine.
LONGEST = 1800
SAYS = {"finetune_deepspeed": "saved to", "sweep": "report.html has the table"}


@pytest.mark.slow
@pytest.mark.parametrize("path", RUN_HERE, ids=lambda path: path.stem)
def test_runs(path: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with log.open("w") as said:
        run = subprocess.Popen(
            [sys.executable, str(path)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            failed = run.wait(LONGEST)
        finally:  # what a launcher started, too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
    assert not failed, log.read_text()[-4000:]
    assert SAYS.get(path.stem, "visual tokens an input") in log.read_text()


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
