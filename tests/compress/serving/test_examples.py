"""The example of serving runs in vLLM's environment (`make serve-test`)."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from compress import save_export
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


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM has an environment of its own")
def test_what_was_kept_is_replayed_by_stock_vllm() -> None:
    folder = ROOT / FOLDER
    if not (folder / "kept.txt").is_file():
        pytest.skip("no file of kept tokens: make serve-test writes it")
    command = [folder / "kept.safetensors", "--model", folder / "mini-1d"]
    done = replay(*map(str, command))
    assert done.returncode == 0, done.stderr
    assert f"vLLM: {(folder / 'kept.txt').read_text()}" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_original_positions_are_not_replayed(tmp_path: Path) -> None:
    """Stock vLLM would renumber them."""
    path = tmp_path / "kept.safetensors"
    entry = {
        "features": torch.zeros(2, 4),
        "positions": torch.tensor([3.0, 7.0])[:, None, None].repeat(1, 1, 3),
        "next_position": torch.tensor(12.0),
        "question_dependent": False,
    }
    save_export(path, [entry], prompt="<image>")
    done = replay(str(path), "--model", "none")
    assert done.returncode == 1
    assert "write it with --positions compact" in done.stderr


def replay(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / "replay_in_vllm.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
