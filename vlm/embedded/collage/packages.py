"""Makes the folder of pictures that collages are drawn from, out of Debian and npm packages.

Nothing is installed: archives are fetched with `apt-get download` and `npm pack` and unpacked
beside the folder. Licences are those of the packages; the folder says which picture is from where.
Another release of Debian may hold other pictures, and collages drawn from them are another
benchmark: `published` tells.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from vlm.embedded.collage.names import THINGS

DEBIAN = {
    "tuxpaint-stamps-default": "GPL-2+",
    "plasma-workspace-wallpapers": "by file: LGPL-3, CC-BY-SA-4.0",
    "mate-backgrounds": "GPL-2+, by file CC-BY-SA-4.0",
    "lomiri-wallpapers-16.04": "CC-BY-SA-3.0, CC-BY-SA-4.0",
    "lomiri-wallpapers-20.04": "CC-BY-SA-3.0, CC-BY-SA-4.0",
    "ukui-wallpapers": "GPL-2+, CC-BY-SA-3.0",
    "fonts-liberation": "OFL-1.1",
    "fonts-lato": "OFL-1.1",
    "fonts-open-sans": "Apache-2.0",
    "fonts-roboto-unhinted": "Apache-2.0",
    "fonts-urw-base35": "AGPL-3 with font exception",
}
NPM = {
    "emoji-datasource-google@16.0.0": "package MIT; drawings of Noto Emoji, Apache-2.0",
    "emoji-datasource-twitter@16.0.0": "package MIT; drawings of Twemoji, CC-BY-4.0",
    "@lobehub/fluent-emoji-3d@1.1.0": "MIT",
}
# SHA-256 over the files in the packages that the pictures of the published figures were made of.
SOURCES = "c2adde1554e6c1c0ba291f46ba180e0915b5e90a5c21a2d4b97bed531174b6c1"
LOOK_SIZE, BACKGROUND_SIZE = 96, 320  # longer side of a look, shorter side of a background
# Blank pictures, twins, and pictures of things that have a name here.
UNFIT = re.compile(
    r"Arc-Colors|Elephants|GreenTraditional|Stripes-(Dark|Light)|Silk|Spring|Waves|Konqui|Safe"
    r"|firstgeneration|goldfish|the-mouse|Dark-no-logo|freespace"
)
FONTS = """
LiberationSans-Bold LiberationSerif-Regular LiberationMono-Bold LiberationSansNarrow-Bold
Lato-Bold Lato-Black Lato-Italic OpenSans-Bold OpenSans-Regular Roboto-Medium Roboto-Black
C059-Bold P052-Bold Z003-MediumItalic URWGothic-Demi URWBookman-Demi NimbusMonoPS-Bold
"""


class PicturesError(RuntimeError):
    """The packages of pictures cannot be fetched or unpacked. The message says why."""


def prepare(folder: Path) -> Path:
    """Make the folder of pictures, unless it is complete already. Returns it.

    Below it: `looks/NAME/STYLE-K.png`, `backgrounds/*.jpg`, `fonts/*`, `ATTRIBUTION.md` and
    `complete`, written last, which holds the SHA-256 of the sources.

    Raises PicturesError if `apt-get`, `dpkg-deb` or `npm` is missing or a package cannot be had.
    """
    if (folder / "complete").is_file():
        return folder
    unpacked = folder.parent / f"{folder.name}-packages"
    for name in (*DEBIAN, *NPM):
        _unpack(name, unpacked)
    made = folder.parent / f"{folder.name}-made"
    shutil.rmtree(made, ignore_errors=True)
    made_of = [*_looks(unpacked, made), *_backgrounds(unpacked, made), *_fonts(unpacked, made)]
    lines = [f"- {name}: {source.relative_to(unpacked)}" for name, source in made_of]
    licences = [f"- {name}: {licence}" for name, licence in (DEBIAN | NPM).items()]
    text = "# Where the pictures are from\n\n" + "\n".join(licences) + "\n\n" + "\n".join(lines)
    (made / "ATTRIBUTION.md").write_text(text + "\n", encoding="utf-8")
    (made / "complete").write_text(_digest(made_of))
    shutil.rmtree(folder, ignore_errors=True)
    made.rename(folder)
    return folder


def published(folder: Path) -> bool:
    """Whether a complete folder holds the pictures that the published figures are about."""
    return (folder / "complete").read_text() == SOURCES


def _digest(made_of: Sequence[tuple[str, Path]]) -> str:
    """SHA-256 over names and the bytes of their sources."""
    digest = hashlib.sha256()
    for name, source in sorted(made_of):
        digest.update(name.encode() + hashlib.sha256(source.read_bytes()).digest())
    return digest.hexdigest()


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]", "-", name.strip("@"))


def _unpack(name: str, unpacked: Path) -> None:
    """Fetch one package and unpack it to `unpacked / _slug(name)`, unless it is there."""
    target = unpacked / _slug(name)
    if target.is_dir():
        return
    partial = unpacked / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "x").mkdir(parents=True)
    debian = name in DEBIAN
    _call(["apt-get", "download", name] if debian else ["npm", "pack", "--silent", name], partial)
    (archive,) = (path for path in partial.iterdir() if path.is_file())
    if debian:
        _call(["dpkg-deb", "-x", archive.name, "x"], partial)
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(partial / "x", filter="data")
    (partial / "x").rename(target)
    shutil.rmtree(partial)


def _call(command: Sequence[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise PicturesError(
            f"{command[0]} is not installed: pictures come from packages"
        ) from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout).strip().splitlines()[-1:] or ["no message"]
        raise PicturesError(f"{' '.join(command)} failed: {last[0]}") from error


def _looks(unpacked: Path, made: Path) -> Iterator[tuple[str, Path]]:
    styles = {
        "google": unpacked / "emoji-datasource-google-16.0.0/package/img/google/64",
        "twitter": unpacked / "emoji-datasource-twitter-16.0.0/package/img/twitter/64",
        "fluent": unpacked / "lobehub-fluent-emoji-3d-1.1.0/package/assets",
    }
    stamps = _stamps(unpacked / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps")
    for name, code in THINGS.items():
        found = [
            (style, path)
            for style, folder in styles.items()
            for path in (folder / f"{code}.png", folder / f"{code}.webp")
            if path.is_file()
        ]
        found += [("stamp", path) for path in stamps.get(name, ())]
        for place, (style, path) in enumerate(found):
            file = made / "looks" / name / f"{style}-{place}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(path) as opened:
                look = opened.convert("RGBA")
            box = look.getchannel("A").point(lambda a: 255 * (a > 16)).getbbox()
            look = look.crop(box)
            scale = LOOK_SIZE / max(look.size)
            size = (max(1, round(look.width * scale)), max(1, round(look.height * scale)))
            look.resize(size, Image.Resampling.LANCZOS).save(file)
            yield f"looks/{name}/{file.name}", path


def _stamps(folder: Path) -> dict[str, list[Path]]:
    """Stamps by the one name of `THINGS` that begins their description."""
    found: dict[str, list[Path]] = {}
    for text in sorted(folder.rglob("*.txt")):
        picture = text.with_suffix(".png")
        if not picture.is_file() or {"symbols", "flags", "roadsigns"} & set(text.parts):
            continue
        line = text.read_text(encoding="utf-8", errors="replace").partition("\n")[0].lower()
        words = re.findall(r"[a-z]+", re.split(r"[.,!?\u2013\u2014]", line)[0])
        # The noun ends a short phrase: "a red apple", not "a tractor wheel".
        if 1 <= len(words) <= 4 and words[-1] in THINGS and "sea" not in words:
            found.setdefault(words[-1], []).append(picture)
    return found


def _backgrounds(unpacked: Path, made: Path) -> Iterator[tuple[str, Path]]:
    (made / "backgrounds").mkdir(parents=True)
    for package in (name for name in DEBIAN if "wallpapers" in name or "backgrounds" in name):
        root = unpacked / package / "usr/share"
        paths = sorted(root.glob("backgrounds/**/*.[jp][pn]g"))
        for wallpaper in sorted(root.glob("wallpapers/*/contents/images")):
            paths += sorted(wallpaper.iterdir(), key=lambda path: (_odd(path), path.name))[:1]
        for path in (path for path in paths if not UNFIT.search(str(path))):
            with Image.open(path) as opened:
                picture = opened.convert("RGB")
            scale = BACKGROUND_SIZE / min(picture.size)
            size = (round(picture.width * scale), round(picture.height * scale))
            stem = path.parents[2].name if path.parent.name == "images" else path.stem
            file = made / "backgrounds" / f"{package}-{stem}.jpg"
            picture.resize(size, Image.Resampling.LANCZOS).save(file, quality=92)
            yield f"backgrounds/{file.name}", path


def _odd(path: Path) -> int:
    """How far a file named by its size is from 1600 pixels of width."""
    width = re.match(r"\d+", path.stem)
    return abs(int(width[0]) - 1600) if width else 10**6


def _fonts(unpacked: Path, made: Path) -> Iterator[tuple[str, Path]]:
    (made / "fonts").mkdir(parents=True)
    for path in sorted(unpacked.glob("fonts-*/usr/share/fonts/**/*.[to]tf")):
        file = made / "fonts" / path.name
        if path.stem in FONTS.split() and not file.exists():
            shutil.copyfile(path, file)
            yield f"fonts/{path.name}", path
