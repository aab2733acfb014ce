"""Pictures out of packages, with stand-ins for the commands that fetch and unpack them."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest
from PIL import Image

from vlm.embedded.collage import PicturesError, packages, prepare, published

STAND_IN = """#!{python}
import sys, tarfile
from pathlib import Path

command, *args = Path(sys.argv[0]).name, *sys.argv[1:]
if command == "dpkg-deb":
    tarfile.open(args[1]).extractall(args[2], filter="data")
    sys.exit()
name = args[-1]
with open({log!r}, "a") as log:
    print(name, file=log)
if name == {missing!r}:
    sys.exit("E: Unable to locate package " + name)
x = Path("content")
for path in {files!r}.get(name, ()):
    (x / path).parent.mkdir(parents=True, exist_ok=True)
    if path.endswith("txt"):
        (x / path).write_text("A small red cat.")
    elif path.endswith("ttf"):
        (x / path).write_bytes(b"font")
    else:
        from PIL import Image
        Image.new("RGBA", (400, 500), (9, 200, 90, 255)).save(x / path)
with tarfile.open("archive.tgz", "w") as tar:
    for path in sorted(x.rglob("*")) if x.exists() else ():
        tar.add(path, path.relative_to(x), recursive=False)
import shutil; shutil.rmtree(x, ignore_errors=True)
"""
FILES = {
    "emoji-datasource-google@16.0.0": ["package/img/google/64/1f408.png"],
    "tuxpaint-stamps-default": [
        "usr/share/tuxpaint/stamps/animals/a.txt",
        "usr/share/tuxpaint/stamps/animals/a.png",
        "usr/share/tuxpaint/stamps/symbols/b.txt",
        "usr/share/tuxpaint/stamps/symbols/b.png",
    ],
    "ukui-wallpapers": ["usr/share/backgrounds/hill.png", "usr/share/backgrounds/Silk.png"],
    "fonts-lato": ["usr/share/fonts/Lato-Bold.ttf", "usr/share/fonts/Lato-Thin.ttf"],
}


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str = "") -> Path:
    """Commands on PATH that make the archives; returns the log of what was fetched."""
    log, commands = tmp_path / "log", tmp_path / "bin"
    commands.mkdir(exist_ok=True)
    for name in ("apt-get", "dpkg-deb", "npm"):
        text = STAND_IN.format(python=sys.executable, log=str(log), missing=missing, files=FILES)
        (commands / name).write_text(text)
        (commands / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(commands), prepend=":")
    return log


@pytest.mark.slow
def test_a_folder_is_made_and_an_interrupted_one_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "collage"
    log = stand_in(tmp_path, monkeypatch, missing="fonts-lato")
    with pytest.raises(PicturesError, match="download fonts-lato failed: E: Unable to locate"):
        prepare(folder)
    assert not folder.exists()
    stand_in(tmp_path, monkeypatch)
    assert prepare(folder) == folder
    fetched = log.read_text().split()
    assert sorted(fetched) == sorted([*packages.DEBIAN, *packages.NPM, "fonts-lato"])
    made = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert made == {
        "looks/cat/google-0.png",
        "looks/cat/stamp-1.png",
        "backgrounds/ukui-wallpapers-hill.jpg",
        "fonts/Lato-Bold.ttf",
        "ATTRIBUTION.md",
        "complete",
    }
    with Image.open(folder / "looks/cat/stamp-1.png") as look:
        assert max(look.size) == packages.LOOK_SIZE
    assert (
        "looks/cat/stamp-1.png: tuxpaint-stamps-default/" in (folder / "ATTRIBUTION.md").read_text()
    )
    assert not published(folder)
    monkeypatch.setattr(packages, "SOURCES", (folder / "complete").read_text())
    assert published(folder)


def test_a_missing_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PicturesError, match=r"apt-get is not installed"):
        prepare(tmp_path / "collage")
    assert not (tmp_path / "collage").exists()
