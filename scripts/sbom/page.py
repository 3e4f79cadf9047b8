"""The list of third-party software with licences, in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..markdown import escape
from .environment import Package
from .stated_licences import COPYLEFT, OWN_TERMS, PERMISSIVE, UNKNOWN, WEAK, licence_kinds, licence_names

MEANING = {
    PERMISSIVE: "use and redistribution with the notices kept",
    WEAK: "changes of the package itself are passed on under the same licence",
    COPYLEFT: "whoever passes on a work with it passes on the work's source under the same licence",
    OWN_TERMS: "read the terms of the maker, above all before passing the package on",
    UNKNOWN: "the package states none, or one that is not recognised: read its files",
}


def licence_page(title: str, packages: Sequence[Package]) -> str:
    """Return the page.

    Args:
        title: what the packages are of.
        packages: the packages, in the order of the page.
    """
    kinds = {each.name: licence_kinds(licence_names(each.headers)) for each in packages}
    counts = Counter(kind for found in kinds.values() for kind in found)
    lines = [
        f"# Third-party software: {title}",
        "",
        "What the packages state about themselves; no legal advice. A wheel may contain other libraries, whose",
        "licences are in the files named in the last column. Kinds other than permissive are in bold.",
        "",
        "| kind | packages | what it usually asks for |",
        "|---|---|---|",
        *(f"| {kind} | {counts[kind]} | {meaning} |" for kind, meaning in MEANING.items()),
    ]
    if other := [each for each in packages if each.pinned not in (None, each.version)]:
        lines += ["", "Installed in another version than the pinned one: "]
        lines[-1] += ", ".join(f"{each.name} {each.version} (pinned {each.pinned})" for each in other) + "."
    lines += ["", "| package | version | licence, as stated | kind | licence files |", "|---|---|---|---|---|"]
    for each in packages:
        cells = [each.name, each.version, " and ".join(licence_names(each.headers)) or "none stated"]
        marked = ", ".join(kind if kind == PERMISSIVE else f"**{kind}**" for kind in kinds[each.name])
        lines.append(f"| {' | '.join(map(escape, cells))} | {marked} | {escape(', '.join(each.licence_files))} |")
    return "\n".join([*lines, ""])
