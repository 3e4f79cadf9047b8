"""The section of a version in CHANGELOG.md."""

import json

import pytest

from release.changelog import read_sections, release_section
from scripts.errors import InputError

CHANGELOG = "# Changelog\n\n## 1.1.0 (2026-02-03)\n\n- two\n\n### More\n\n- three\n\n## 1.0.0 (2026-01-02)\n\n- one\n"
SUMMARIES = {"1.1.0": "2026-02-03: two and three", "1.0.0": "2026-01-02: one"}


@pytest.fixture
def root(tmp_path):
    """Return a function that writes a clone with these changelogs."""

    def write(version="1.1.0", changelog=CHANGELOG, summaries=SUMMARIES):
        (tmp_path / "configs").mkdir(exist_ok=True)
        metadata = {"version": version, "changelog": summaries}
        (tmp_path / "configs" / "metadata.json").write_text(json.dumps(metadata))
        (tmp_path / "CHANGELOG.md").write_text(changelog)
        return tmp_path

    return write


def test_sections_hold_everything_below_their_headings():
    sections = read_sections(CHANGELOG)
    assert [(each.version, each.date) for each in sections] == [("1.1.0", "2026-02-03"), ("1.0.0", "2026-01-02")]
    assert [each.text for each in sections] == ["- two\n\n### More\n\n- three", "- one"]


def test_section_is_of_the_version_in_the_metadata(root):
    assert release_section(root()).text.startswith("- two")


@pytest.mark.parametrize(
    "changelog", [CHANGELOG.replace("1.1.0", "1.2.0"), CHANGELOG.replace("- two\n\n### More\n\n- three\n\n", ""), ""]
)
def test_version_without_changes_is_refused(root, changelog):
    with pytest.raises(InputError, match=r"no changes of version 1\.1\.0"):
        release_section(root(changelog=changelog))


def test_missing_changelog_is_refused(root):
    folder = root()
    (folder / "CHANGELOG.md").unlink()
    with pytest.raises(InputError, match=r"needs CHANGELOG\.md"):
        release_section(folder)


@pytest.mark.parametrize(
    ("summaries", "difference"),
    [
        ({**SUMMARIES, "1.1.0": "2026-02-04: two"}, r"1\.1\.0 \(2026-02-04\), 1\.1\.0 \(2026-02-03\)"),
        ({"1.1.0": SUMMARIES["1.1.0"]}, r"1\.0\.0 \(2026-01-02\)"),
        (dict(reversed(SUMMARIES.items())), "their order"),
    ],
)
def test_changelogs_that_differ_are_refused(root, summaries, difference):
    with pytest.raises(InputError, match=f"they differ in {difference}"):
        release_section(root(summaries=summaries))


def test_version_that_is_not_the_newest_is_refused(root):
    with pytest.raises(InputError, match="bundle first; they differ in their order"):
        release_section(root(version="1.0.0"))
