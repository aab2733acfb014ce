"""Every block of Python in the documentation runs, and every command in it exists.

The blocks of a page run in order, with the same names, in a folder that holds what they read. A
block whose first line is a comment that begins with "Needs" is compiled and its imports of this
project are resolved, but it does not run.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import re
import runpy
import shlex
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import compress
import vlm
from compress.probing import verdict
from tests.test_docs import PAGES, name_of
from tests.vlm import encoders, models
from tests.vlm.clips import write_clip
from vlm.embedded import mini

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
# The example of this page has a test of its own.
BLOCKS = {
    page: BLOCK.findall(page.read_text(encoding="utf-8"))
    for page in PAGES
    if page.name != "add-a-method.md"
}
SHOWN = [page for page, blocks in BLOCKS.items() if blocks]
ROOMS = ("compress", "eval", "foveate", "positions", "scripts", "train", "vlm")


def needs(block: str) -> bool:
    return block.startswith("# Needs ")


def test_blocks_compile_and_import_what_exists() -> None:
    assert len(SHOWN) > 5
    for page, block in [(shown, block) for shown in SHOWN for block in BLOCKS[shown]]:
        for node in ast.walk(ast.parse(block, str(page))):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in ROOMS:
                module = importlib.import_module(str(node.module))
                missing = [a.name for a in node.names if not hasattr(module, a.name)]
                assert not missing, f"{name_of(page)}: {node.module} has no {missing}"


def test_python_is_marked_as_such() -> None:
    """An indented block is for commands and results; Python there would not be run."""
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        assert not re.findall(r"^    (?:from \w+ )?import .*$", text, re.MULTILINE), page


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what the pages read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verdict, "probes_folder", lambda: tmp_path / "probes")
    models.picture(size=(160, 120)).save("photo.jpg")
    for name in ("clip.mp4", "hour.mp4", "long.mp4"):
        write_clip(tmp_path / name)
    clip = hf.CLIPVisionConfig(image_size=24, **encoders.SMALL)
    hf.CLIPVisionModel(clip).save_pretrained("path/to/clip")
    sam = {"window_size": 3, "global_attn_indexes": [1], "output_channels": 8}
    hf.SamVisionModel(hf.SamVisionConfig(image_size=64, **sam, **encoders.SMALL)).save_pretrained(
        "path/to/sam"
    )
    causal = hf.AutoModelForCausalLM.from_config(models.text_config())
    causal.save_pretrained("path/to/llm")
    mini.build_tokenizer().save_pretrained("path/to/llm")
    models.stock_llava()[0].save_pretrained("path/to/llava")
    return tmp_path


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What a reader has at hand: a model, inputs, features."""
    model, processor = vlm.load("mini")
    inputs = processor(images=models.picture(), text=models.ASK, return_tensors="pt")
    draw = torch.Generator().manual_seed(0)
    features, keys = torch.randn(2, 1, 576, 16, generator=draw)
    saliency = torch.rand(1, 576, generator=draw)
    return {
        "model": model,
        "processor": processor,
        "inputs": inputs,
        "features": features,
        "keys": keys,
        "saliency": saliency,
    }


@pytest.mark.slow
@pytest.mark.parametrize("page", SHOWN, ids=name_of)
def test_blocks_run(
    page: Path, folder: Path, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("shown")
    monkeypatch.setitem(sys.modules, "shown", module)
    vars(module).update(names, compress=compress.compress)
    with contextlib.redirect_stdout(io.StringIO()):
        for block in BLOCKS[page]:
            if not needs(block):
                exec(compile(block, name_of(page), "exec"), vars(module))


# ------------------------------------------------------------------ commands


def commands(page: Path) -> Iterator[list[str]]:
    """`foveate ...` and `python -m <room> ...` of a page's indented blocks, without line breaks."""
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    for line in re.findall(r"^    ((?:foveate|python -m|deepspeed) .*)$", text, re.MULTILINE):
        words = shlex.split(line, comments=True)
        if words[0] == "python" and words[2].split(".")[0] in ROOMS:
            yield words[2:]
        elif words[0] == "deepspeed" and "--module" in words:
            yield words[words.index("--module") + 1 :]
        elif words[0] == "foveate":
            yield words


COMMANDS_SHOWN = sorted({tuple(words) for page in PAGES for words in commands(page)})


def help_of(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> str:
    """What the help of a command says; its first word may be a subcommand."""
    module, *rest = words
    subcommand = [word for word in rest[:1] if re.fullmatch(r"[a-z]\w*", word)]
    monkeypatch.setattr(sys, "argv", [module, *subcommand, "--help"])
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    return said.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS_SHOWN, ids=" ".join)
def test_commands_exist(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    said = help_of(words, monkeypatch)
    assert said.startswith("usage: ")
    options = [word for word in words if word.startswith("--") and " " not in word]
    for option in [word.split("=")[0] for word in options]:
        assert re.search(rf"{option}\b", said), f"{' '.join(words)}: no {option}"
