"""The example of serving runs in vLLM's environment (`make serve-test`)."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.compress.serving.cases import FOLDER

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM has an environment of its own")
def test_serve(tmp_path: Path) -> None:
    folder = ROOT / FOLDER
    if not (folder / "mini-1d").is_dir():
        pytest.skip("no model: make serve-test writes it")
    picture = next(folder.glob("*.png"))
    command = ["--model", folder / "mini-1d", "--image", picture, "--cache-bytes", 2**26]
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "serve.py"), *map(str, command), "--keep", "48"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "tokens in, answer: " in done.stdout
