"""The links between the pages of the documentation."""

import re

import pytest

from scripts.models.licences import DINOV2, RAD_DINO, TIMM, UNKNOWN
from tests.tiny_bundle import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "models" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def links(page):
    """Return the pages and pictures that a page links to, and the headings that the links name, "" for none."""
    targets = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text())
    return [((page.parent / path).resolve() if path else page, heading) for path, heading in targets]


def anchors(page):
    """Return the anchors of the headings of a page, made as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    assert [path for path, _ in links(page) if not path.exists()] == []
    assert [heading for path, heading in links(page) if heading and heading not in anchors(path)] == []


def test_page_of_licences_has_those_of_the_encoders():
    page = (ROOT / "docs" / "licences.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|")]
    words = {True: "yes", False: "**no**", None: "**not known**"}
    for licence in (DINOV2, RAD_DINO, UNKNOWN, *TIMM.values()):
        cells = [row.split("|")[3] for row in rows if licence.name in row and row.count("|") == 5]
        assert any(cell.strip().startswith(words[licence.commercial]) for cell in cells), licence.name


def test_every_page_is_found_from_the_readme():
    listed = {path for path, _ in links(ROOT / "docs" / "README.md")}
    assert {page for page in PAGES if page.is_relative_to(ROOT / "docs")} - listed == {ROOT / "docs" / "README.md"}
