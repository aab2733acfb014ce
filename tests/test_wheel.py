"""The wheel alone, outside the checkout, finds its data and answers a question about a picture."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from foveate import __version__
from vlm.embedded.scenes import draw, make_scene

ROOT = Path(__file__).parent.parent
CHECK = """
import compress, eval, positions, train, vlm
from pathlib import Path
for room in (compress, eval, positions, train, vlm):
    folder = Path(room.__file__).parent
    assert str(folder).startswith({prefix!r}), folder
    assert (folder / "py.typed").is_file(), folder
model, processor = vlm.load("mini")
print(sum(p.numel() for p in model.parameters()), len(processor.tokenizer))
"""


@pytest.mark.slow
def test_wheel_works_outside_the_checkout(tmp_path: Path) -> None:
    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    wheels = tmp_path / "wheels"
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(wheels), str(ROOT))
    (wheel,) = wheels.glob("foveate-*.whl")
    venv.create(tmp_path / "env", with_pip=True)
    python = str(tmp_path / "env" / "bin" / "python")
    run(python, "-m", "pip", "install", "-q", "--no-deps", str(wheel))
    # The dependencies of this environment, without its own link to the checkout: a path in a .pth
    # file is searched, but .pth files that lie there are not read.
    site = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip()
    )
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    parameters, vocabulary = run(python, "-c", CHECK.format(prefix=str(tmp_path))).split()
    assert int(parameters) > 1e6 and int(vocabulary) > 100
    draw(make_scene(515, "test")).save(tmp_path / "scene.png")
    command = str(tmp_path / "env" / "bin" / "foveate")
    asked = ("How many purple objects are there?", "--image", "scene.png", "--budget", "1/3")
    answer, *_ = run(command, "ask", *asked).splitlines()
    assert answer == "4"
    (tmp_path / "train.py").write_text("raise SystemExit(7)")  # a user's own
    assert run(command, "train", "--help").startswith("usage: foveate train")
    assert run(command, "--version") == f"foveate {__version__}\n"
