"""A folder of made-up pictures, as `vlm.embedded.collage.packages.prepare` makes it of packages."""

from __future__ import annotations

import shutil
from pathlib import Path

import matplotlib
from PIL import Image

from vlm.embedded.collage import THINGS
from vlm.embedded.collage.scene import HELD_OUT_FONTS


def make_folder(folder: Path) -> Path:
    """Two plain looks of each name, ten backgrounds, DejaVu under the names of the fonts."""
    for place, name in enumerate(THINGS):
        (folder / "looks" / name).mkdir(parents=True)
        for style in ("google-0", "fluent-1"):
            look = Image.new("RGBA", (20, 12), (2 * place, 200, 90, 255))
            look.save(folder / "looks" / name / f"{style}.png")
    (folder / "backgrounds").mkdir()
    for shade in range(10):
        Image.new("RGB", (60, 50), (20 * shade,) * 3).save(folder / "backgrounds" / f"{shade}.png")
    (folder / "fonts").mkdir()
    font = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    for stem in ("Plain", *[stem for stems in HELD_OUT_FONTS.values() for stem in stems]):
        shutil.copyfile(font, folder / "fonts" / f"{stem}.ttf")
    (folder / "complete").write_text("")
    return folder
