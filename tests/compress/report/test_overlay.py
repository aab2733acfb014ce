"""Pictures of what a compression kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from compress import compress
from compress.methods import Duet
from compress.report.overlay import overlay
from compress.tokens import Reduction
from tests import tiny


def drawn(assign: list[int], anchor: list[int]) -> np.ndarray:
    """The second panel's pixels, on a 2 x 2 grid over a white picture."""
    rows = torch.tensor([assign])
    size = torch.bincount(rows[rows >= 0], minlength=len(anchor))[None]
    reduction = Reduction(torch.zeros(1, len(anchor), 1), rows, torch.tensor([anchor]), size)
    sheet = overlay(Image.new("RGB", (80, 80), "white"), [("stage", (1, 2, 2), reduction)])
    half = np.asarray(sheet)[:, sheet.width // 2 :]
    return half[-356:-20, 10:-20]


def test_overlay_tells_kept_merged_and_dropped_apart() -> None:
    pixels = drawn([0, -1, 1, 1], [0, 2])
    middle = pixels.shape[0] // 4
    kept, dropped, merged = (
        pixels[middle, middle],
        pixels[middle, -middle],
        pixels[-middle, -middle],
    )
    assert kept.tolist() == [255, 255, 255]
    assert int(dropped.max()) < 80 and np.ptp(dropped) == 0
    assert np.ptp(merged) > 20 and int(merged.max()) > 180


def test_overlay_of_a_compression(tmp_path: Any) -> None:
    model = tiny.llava()
    picture = Image.new("RGB", (64, 48), "red")
    with compress(model, Duet(variant="released"), budget=16) as c:
        with pytest.raises(RuntimeError, match="nothing to report"):
            c.overlay(picture)
        model(**tiny.images_and_text())
        c.overlay(picture, tmp_path / "kept.png", index=1)
        with pytest.raises(IndexError, match="2 visual inputs"):
            c.overlay(picture, index=2)
    # The picture, what entered, and the two stages that changed something.
    assert Image.open(tmp_path / "kept.png").width == 4 * (336 + 10) + 10
