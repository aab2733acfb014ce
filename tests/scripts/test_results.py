"""The published tables follow from the published JSON."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scripts import results
from scripts.common import RESULTS


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A copy of the page and of the facts behind it, without what is rendered from them."""
    folder = tmp_path / "results"
    folder.mkdir()
    for path in RESULTS.glob("*.json"):
        shutil.copy(path, folder)
    shutil.copy(RESULTS.parent / "results.md", tmp_path)
    return folder


def test_what_is_published_is_what_the_facts_say(published: Path) -> None:
    assert results.main(published) == 0
    rendered = {path.name for path in published.glob("*.md")}
    assert rendered == {path.name for path in RESULTS.glob("*.md")}
    for name in rendered:
        assert (published / name).read_text() == (RESULTS / name).read_text(), name
    page = published.parent / "results.md"
    assert page.read_text() == (RESULTS.parent / "results.md").read_text()
    drawn = {path.name for path in RESULTS.glob("*.png")} - {"mini-training.png"}
    assert {path.name for path in published.glob("*.png")} == drawn


def test_a_table_that_nothing_renders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.md"):
        results.filled("<!-- table: nothing -->\n<!-- end -->", tmp_path)
