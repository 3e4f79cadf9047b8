"""Text files that end with a digest of themselves, so that one that was edited by hand is never replaced."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from ..errors import InputError, reason
from .atomic import atomic_write

SEAL = "<!-- Written by the anomaly bundle, which replaces this file while it is unchanged: sha256 {digest} -->\n"
SEALED = re.compile(re.escape(SEAL).replace(r"\{digest\}", "([0-9a-f]{64})") + r"\Z")


def write_sealed(text: str, path: str | os.PathLike, option: str = "output") -> None:
    """Write a Markdown or HTML text with a seal as its last line; see `atomic_write`.

    Args:
        text: the text, which ends with a newline.
        path: the file; an older one is replaced if it is as this function wrote it.
        option: name of the setting, for messages.

    Raises:
        InputError: the file is a directory, was written by somebody else or changed since, or cannot be written.
    """
    target = Path(path).absolute()
    if target.is_dir():
        raise InputError(f"{option} must name a file; {target} is a directory.")
    if os.path.lexists(target) and not is_sealed(target):
        raise InputError(
            f"{option} {target} was not written by this program, or was changed since, and is left alone; give another "
            "place."
        )
    try:
        with atomic_write(target) as partial:
            partial.write_text(text + SEAL.format(digest=_digest(text)), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{option} {target} cannot be written ({reason(error)}); give another place.") from error


def is_sealed(path: Path) -> bool:
    """Return whether a file is as `write_sealed` wrote it."""
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return False
    found = SEALED.search(text)
    return not path.is_symlink() and found is not None and _digest(text[: found.start()]) == found[1]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
