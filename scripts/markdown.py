"""Text in Markdown pages."""

from __future__ import annotations

import re

from .errors import printable

MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~&!])")


def escape(text: str) -> str:
    """Return text for a cell of a table: on one line, with nothing that Markdown or HTML would read as markup."""
    return MARKUP.sub(r"\\\1", printable(" ".join(text.split())))
