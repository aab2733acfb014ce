"""A few drawn pictures and clips, which the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import pytest

from train.mini.data import IMAGE, VIDEO, Drawn

COUNTS = {IMAGE: 6, VIDEO: 3}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pictures and clips are kept."""
    return tmp_path_factory.mktemp("drawn")


@pytest.fixture(scope="session")
def data(folder: Path) -> dict[str, Drawn]:
    """The pictures and clips, by kind."""
    return {kind: Drawn.prepare(kind, folder, count) for kind, count in COUNTS.items()}
