"""The published tables and pages are rendered from the published JSON."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from scripts import results
from scripts.common import RESULTS


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A copy of the JSON files and of the pages, whose tables are emptied."""
    folder = tmp_path / "results"
    folder.mkdir()
    (tmp_path / "studies").mkdir()
    for path in RESULTS.glob("*.json"):
        shutil.copy(path, folder)
    for page in results.pages(RESULTS.parent):
        text = page.read_text(encoding="utf-8")
        empty = re.sub(r"(<!-- table: .*? -->\n).*?(<!-- end -->)", r"\1\2", text, flags=re.DOTALL)
        (tmp_path / page.relative_to(RESULTS.parent)).write_text(empty, encoding="utf-8")
    return folder


@pytest.mark.slow
def test_published_tables_follow_from_the_json(published: Path) -> None:
    assert results.main(published) == 0
    rendered = {path.name for path in published.glob("*.md")}
    assert rendered == {path.name for path in RESULTS.glob("*.md")}
    for name in rendered:
        assert (published / name).read_text() == (RESULTS / name).read_text(), name
    pages = results.pages(RESULTS.parent)
    assert len(pages) > 5
    for page in pages:
        copy = published.parent / page.relative_to(RESULTS.parent)
        assert copy.read_text() == page.read_text(), page
    drawn = {path.name for path in RESULTS.glob("*.png")} - {
        "budgets.png",
        "budgets-small.png",
        "mini-training.png",
        "small-training.png",
    }
    assert {path.name for path in published.glob("*.png")} == drawn


def test_every_table_is_shown_once() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in results.pages(RESULTS.parent))
    shown = re.findall(r"<!-- table: ([\w-]+) -->", text)
    linked = set(re.findall(r"results/([\w-]+)\.md\)", text))
    assert len(shown) == len(set(shown))
    assert {path.stem for path in RESULTS.glob("*.md")} == set(shown) | linked


def test_a_table_that_nothing_renders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.md"):
        results.filled("<!-- table: nothing -->\n<!-- end -->", tmp_path)
