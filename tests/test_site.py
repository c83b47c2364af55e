"""The docs as a site: built strictly, every link leads somewhere, and what is generated is current."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `mkdocs build --strict` builds it: a warning is an error. mkdocs 1.6.1, mkdocs-material 9.8.2."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


def test_every_page_of_the_docs_is_built(site: Path) -> None:
    pages = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")}
    renamed = {page.with_name("index.html") if page.stem == "README" else page for page in pages}
    assert {page for page in renamed if not (site / page).is_file()} == set()
    assert (site / "contributing.html").is_file()


def test_links_of_pages_lead_to_files_and_places_of_the_site(site: Path) -> None:
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue
        for target in re.findall(r'<a [^>]*href="([^"]+)"', page.read_text(encoding="utf-8")):
            name, _, anchor = target.partition("#")
            if "://" in name or name.startswith("mailto:"):
                continue
            file = (page.parent / name).resolve() if name else page
            assert file.is_file(), f"{page.name}: {target}"
            if anchor and not anchor.startswith("__"):
                assert f'id="{anchor}"' in file.read_text(encoding="utf-8"), f"{page.name}: {target}"


def test_pages_fetch_nothing_from_elsewhere(site: Path) -> None:
    text = (site / "index.html").read_text(encoding="utf-8")
    fetched = re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="(https?://[^"]+)"', text)
    assert fetched == []


def test_the_page_of_the_python_names_is_that_of_their_docstrings() -> None:
    """Where it isn't: python docs/site/api.py > docs/api.md"""
    assert (DOCS / "api.md").read_text(encoding="utf-8") == runpy.run_path(str(DOCS / "site" / "api.py"))["page"]()


def test_every_public_name_is_on_the_page() -> None:
    import qtarget

    page = (DOCS / "api.md").read_text(encoding="utf-8")
    assert {name for name in qtarget.__all__ if f"### `qtarget.{name}`" not in page} == set()


def test_links_of_the_plain_files_lead_to_files() -> None:
    """As code hosts show them, without the site."""
    for page in [*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_stands_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"[\w/-]+\.md", yaml.safe_dump(yaml.safe_load(text)["nav"])))
    assert listed - {"contributing.md"} == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
