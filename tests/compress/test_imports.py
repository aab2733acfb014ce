"""What works on tensors is imported without transformers, which serving engines bring older."""

from __future__ import annotations

import subprocess
import sys

import pytest

TENSORS = (
    "compress",
    "compress.methods",
    "compress.ops",
    "compress.tokens",
    "compress.budget",
    "compress.reduce",
    "compress.video.stream",
    "positions",
    "vlm",
    "vlm.attention",
    "compress.serving.vllm",
    "compress.serving.vllm.settings",
    "compress.serving.vllm.placing",
)

BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "transformers":
            raise ImportError("no transformers here")
sys.meta_path.insert(0, Block())
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tensors_need_no_transformers() -> None:
    lines = [f"import {name}" for name in TENSORS]
    run(
        BLOCK
        + "\n".join(lines)
        + """
import torch
from compress import reduce
assert reduce(torch.randn(1, 16, 8), "divprune", 4).count == 4
assert "transformers" not in sys.modules
"""
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "found, words",
    [
        ("5.19.0", "5.19.0 is installed"),
        ("5.24.0", "5.24.0 is installed"),
        (None, "not installed"),
    ],
)
def test_compress_says_which_transformers_it_needs(found: str | None, words: str) -> None:
    version = (
        f"lambda name: {found!r}" if found else "lambda name: (_ for _ in ()).throw(missing(name))"
    )
    out = run(
        f"""
from importlib import metadata
missing = metadata.PackageNotFoundError
metadata.version = {version}
import compress
try:
    compress.compress
except ImportError as error:
    print(error)
"""
    )
    assert "compress.compress needs transformers >= 5.20, < 5.24" in out
    assert words in out
