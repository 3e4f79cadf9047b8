"""The sections of CHANGELOG.md, and their agreement with ``configs/metadata.json``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.errors import InputError, reason
from scripts.metadata import ROOT, read_metadata

HEADING = re.compile(r"^## (\S+) \((\d{4}-\d\d-\d\d)\)\n", re.MULTILINE)


@dataclass(frozen=True)
class Section:
    """The changes of a version.

    Attributes:
        version: the version.
        date: its date, as ``YYYY-MM-DD``.
        text: the changes, in Markdown.
    """

    version: str
    date: str
    text: str


def read_sections(text: str) -> list[Section]:
    """Split a changelog into its sections, in their order."""
    _, *parts = HEADING.split(text)
    return [Section(*(part.strip() for part in parts[start : start + 3])) for start in range(0, len(parts), 3)]


def release_section(root: Path = ROOT) -> Section:
    """Return the section of the version that is to be released.

    Args:
        root: the clone, whose metadata state the version.

    Raises:
        InputError: CHANGELOG.md has no section with changes of it, or does not agree with the metadata.
    """
    metadata = read_metadata(root)
    try:
        sections = read_sections((root / "CHANGELOG.md").read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"A release needs CHANGELOG.md, which cannot be read ({reason(error)}).") from error
    for section in sections:
        if section.version == metadata["version"] and section.text:
            check_agreement(metadata, sections)
            return section
    raise InputError(
        f"CHANGELOG.md has no changes of version {metadata['version']}, the one of configs/metadata.json; write them "
        f"below a heading '## {metadata['version']} (YYYY-MM-DD)'."
    )


def check_agreement(metadata: Mapping[str, Any], sections: list[Section]) -> None:
    """Check that the changelog in the metadata has the versions and dates of CHANGELOG.md, the newest first.

    Raises:
        InputError: it has others.
    """
    summaries = [(version, text.partition(":")[0]) for version, text in metadata["changelog"].items()]
    headings = [(section.version, section.date) for section in sections]
    if [metadata["version"], *summaries] == [headings[0][0], *headings]:
        return
    others = [f"{version} ({date})" for version, date in sorted(set(summaries) ^ set(headings), reverse=True)]
    raise InputError(
        "The changelog in configs/metadata.json and CHANGELOG.md must have the same versions and dates, and the "
        f"version of the bundle first; they differ in {', '.join(others) or 'their order'}."
    )
