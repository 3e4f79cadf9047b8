"""Licences that Python packages state, and what kind they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from email.message import Message
from typing import Any

LONGEST_NAME = 100  # characters; longer values of `License` are the text of a licence
PERMISSIVE, WEAK, COPYLEFT, OWN_TERMS, UNKNOWN = "permissive", "weak copyleft", "copyleft", "own terms", "unknown"
MILDEST_FIRST = (PERMISSIVE, WEAK, COPYLEFT, OWN_TERMS, UNKNOWN)
PATTERNS = {  # by kind; the first that matches a name in lower case decides
    OWN_TERMS: r"proprietary|licenseref|commercial|eula",
    WEAK: r"\blgpl|lesser general|library general|\bmpl\b|mpl-|mozilla|\bepl|eclipse|\bcddl|gcc-exception",
    COPYLEFT: r"\ba?gpl|\bgnu\b|general public|\beupl|cc-by-sa|share ?alike|\bcecill|\bosl",
    PERMISSIVE: r"\bmit\b|\b0?bsd|apache|\bisc|\bpsfl?\b|python software foundation|python-2|zlib|\bcc0|\bbsl-|hpnd|"
    r"unlicense|public domain|\bncsa|\bzpl|zope|\bmit-|\bpil\b",
}
GROUP = re.compile(r"\(([^()]*\s(?:AND|OR)\s[^()]*)\)")
AND, OR = re.compile(r"\s+AND\s+"), re.compile(r"\s+OR\s+")


def licences(headers: Message) -> dict[str, Any]:
    """Return the licences that a package states: an SPDX expression, or else names.

    Args:
        headers: headers of METADATA.

    Returns:
        ``{"licenses": [...]}`` as in CycloneDX, or nothing if it states none.
    """
    expression = headers.get("License-Expression")
    if expression:
        return {"licenses": [{"expression": expression}]}
    return {"licenses": [{"license": {"name": name}} for name in names]} if (names := licence_names(headers)) else {}


def licence_names(headers: Message) -> list[str]:
    """Return the expression or the names of the licences that a package states."""
    expression = headers.get("License-Expression")
    if expression:
        return [expression]
    stated = (headers.get("License") or "").strip()
    if stated and stated.upper() != "UNKNOWN" and "\n" not in stated and len(stated) <= LONGEST_NAME:
        return [stated]
    classifiers = [line.split(" :: ") for line in headers.get_all("Classifier", [])]
    return [parts[-1] for parts in classifiers if parts[0] == "License" and len(parts) > 2]


def licence_kinds(names: Sequence[str]) -> list[str]:
    """Return the kinds of the licences of a package, the mildest first.

    Args:
        names: see `licence_names`; all of them hold.

    Returns:
        ``PERMISSIVE`` alone, or all other kinds; of alternatives (``OR``) those of the mildest. ``UNKNOWN`` if none is
        stated, or one is not recognised.
    """
    kinds = set().union(*map(_kinds, names)) or {UNKNOWN}
    return [kind for kind in MILDEST_FIRST if kind in kinds - {PERMISSIVE}] or [PERMISSIVE]


def _kinds(expression: str) -> set[str]:
    """Return the kinds of a name or an SPDX expression."""
    while group := GROUP.search(expression):  # from the innermost brackets outwards
        expression = expression.replace(group[0], f" {' AND '.join(sorted(_kinds(group[1])))} ")
    return min((set(map(_kind, AND.split(each))) for each in OR.split(expression)), key=_strictest)


def _kind(name: str) -> str:
    if name.strip() in MILDEST_FIRST:
        return name.strip()  # of a group
    return next((kind for kind, pattern in PATTERNS.items() if re.search(pattern, name.lower())), UNKNOWN)


def _strictest(kinds: set[str]) -> int:
    return max(map(MILDEST_FIRST.index, kinds))
