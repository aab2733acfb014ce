"""Every relative link and anchor of the documentation leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from compress.methods import METHODS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
FENCED = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """A page without its code."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    return re.sub(r"`[^`\n]*`", lambda code: code[0].replace("](", "] ("), text)


def relative_targets(text: str) -> list[str]:
    """The targets of links and images, without those on other sites."""
    targets = re.findall(r"\]\(\s*([^)\s]+)(?:\s+\"[^\"]*\")?\s*\)", text)
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> list[str]:
    """The relative links of a page whose file or anchor does not exist."""
    dead = []
    for target in relative_targets(prose(page)):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(target)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links(page: Path) -> None:
    assert not dead_links(page)


@pytest.mark.parametrize("page", [p for p in PAGES if p.is_relative_to(DOCS)], ids=name_of)
def test_site(page: Path) -> None:
    """A page is in the navigation of mkdocs.yml, and links to no file that the site lacks."""
    name = page.relative_to(DOCS).as_posix()
    if not name.startswith(("results/", "bench/")):
        assert f": {name}\n" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    files = [target.partition("#")[0] for target in relative_targets(prose(page))]
    outside = [f for f in files if f and not (page.parent / f).resolve().is_relative_to(DOCS)]
    assert not outside


def test_every_method_is_in_the_reference() -> None:
    page = (DOCS / "api" / "methods.md").read_text(encoding="utf-8")
    names = {f"{cls.__module__}.{cls.__name__}" for cls in METHODS.values()}
    assert names <= set(re.findall(r"^::: (\S+)$", page, re.MULTILINE))


def test_dead_links_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A title, here\n[a](page.md#a-title-here) [b](gone.md) ![c](gone.png) [d](#no) "
        "[e](https://example.org) `[f](code.md)`\n```\n[g](code.md)\n```\n"
    )
    assert dead_links(page) == ["gone.md", "gone.png", "#no"]
