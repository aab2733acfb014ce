"""The command `foveate`: what it imports, what it calls, and what it says to mistakes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress import list_methods
from foveate import __version__
from foveate.command import COMMANDS, main

ROOT = Path(__file__).parents[2]


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_help_imports_nothing_that_is_slow(tmp_path: Path) -> None:
    code = (
        "import sys; from foveate.command import main; main(['--help']); slow = 'torch', "
        "'transformers', 'numpy', 'PIL', 'gradio'; print([m for m in slow if m in sys.modules])"
    )
    done = python("-c", code, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(f"  {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "page"])
def test_every_command_has_help_under_its_own_name(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: foveate {name}")


def test_methods_and_families(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert set(lines) == {"method", *list_methods()}
    assert "pre-LLM + in-LLM" in lines["duet"] and "arXiv 2602.18846" in lines["duet"]
    assert " yes " in lines["fastv"] and " no " in lines["divprune"]
    assert "pre-ViT" in lines["downsample"]
    assert main(["families"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["llava"].endswith("images") and lines["qwen2_vl"].endswith("images, videos")


def test_version_and_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"foveate {__version__}\n"
    assert main(["compres"]) == 2
    assert "'compres' is no command; expected one of ask" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("bash") is None, reason="not installed: bash")
def test_completion_of_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out

    def completed(*words: str) -> list[str]:
        asked = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _foveate"
        code = f'{script}\n{asked}; echo "${{COMPREPLY[@]}}"'
        return subprocess.run(["bash", "-c", code], capture_output=True, text=True).stdout.split()

    assert completed("foveate", "me") == ["methods"]
    assert completed("foveate", "ask", "--bu") == ["--budget"]
    assert {"--model", "--method"} <= {*completed("foveate", "see", "--")}
    assert completed("foveate", "see", "photo") == []
    for shell in ("zsh", "fish"):
        assert main(["completion", shell]) == 0
        assert "budget" in capsys.readouterr().out
    assert main(["completion", "csh"]) == 2
    assert "shell is csh: expected one of bash" in capsys.readouterr().err


@pytest.mark.slow
def test_a_train_py_of_the_user_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print('mine'); raise SystemExit(7)\n")
    (tmp_path / "eval.py").write_text("raise SystemExit(7)\n")
    done = python("-m", "foveate", "train", "--help", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: foveate train")
    # A launcher puts the rank first.
    done = python(
        "-m", "foveate", "--local_rank=0", "train", "none", cwd=tmp_path, PYTHONPATH=str(ROOT)
    )
    assert done.returncode == 2 and "none" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_one_warning_where_packages_are_hidden(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    done = python("-W", "always", "-c", "import vlm, compress", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0 and done.stderr.count("hide packages of Foveate") == 1
    assert str(tmp_path / "train.py") in done.stderr
    (tmp_path / "train.py").unlink()
    done = python("-W", "always", "-c", "import vlm, compress", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert "hide packages" not in done.stderr


def test_reduce_writes_what_the_library_gives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = torch.randn(1, 24, 8, generator=torch.Generator().manual_seed(0))
    save_file({"features": features}, tmp_path / "f.safetensors")
    given = [str(tmp_path / "f.safetensors"), "--grid", "4x6"]
    assert main(["reduce", *given, "--budget", "6"]) == 0
    assert "24 tokens -> 6" in capsys.readouterr().out
    written = load_file(tmp_path / "f-reduced.safetensors")
    from compress import reduce

    expected = reduce(features, "divprune", 6, grid=(4, 6))
    assert torch.equal(written["features"], expected.features)
    assert torch.equal(written["assign"], expected.assign)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--grid", "4by6"], "expected HxW"),
        (["--budget", "0"], "0"),
        (["--method", "prumerge", "--grid", "4x6"], "needs keys"),
        (["--grid", "5x6"], "30 tokens"),
    ],
)
def test_reduce_says_what_is_wrong(
    tmp_path: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"features": torch.randn(1, 24, 8)}, tmp_path / "f.safetensors")
    assert main(["reduce", str(tmp_path / "f.safetensors"), *options]) == 1
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    (tmp_path / "g.safetensors").write_text("no tensors")
    assert main(["reduce", str(tmp_path / "g.safetensors")]) == 1
    assert "not a safetensors file" in capsys.readouterr().err
