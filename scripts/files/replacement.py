"""Replacement of a recorded directory without loss of the files that other people keep in it."""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

from ..errors import InputError
from .record import RECORD, describe_file, match_description, recorded_files

logger = logging.getLogger(__name__)


def keep_foreign_files(old: Path, new: Path) -> None:
    """Link or copy the files that the record of a directory does not list into its replacement.

    Args:
        old: the directory, which keeps them too.
        new: its replacement.

    Raises:
        InputError: the replacement has a file of that name.
    """
    files = recorded_files(old)
    for entry in sorted(old.rglob("*")):
        relative = entry.relative_to(old)
        target = new / relative
        if entry.is_dir() and not entry.is_symlink():
            if not any(entry.iterdir()):
                target.mkdir(parents=True, exist_ok=True)
        elif str(relative) != RECORD and not match_description(entry, files.get(relative.as_posix(), [])):
            if os.path.lexists(target):
                raise InputError(
                    f"{old.name}/{relative.as_posix()} was not written by this program, or was changed since; rename "
                    "it to keep it, and run again."
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(entry, target)


def finish_replacement(old: Path, target: Path) -> None:
    """Finish a replacement that may have been interrupted.

    If the new directory is missing, restore the old one. Otherwise remove the files of the old one that the program
    wrote or that both have, and move later additions to the new one.

    Args:
        old: the replaced directory, under its temporary name.
        target: the place of both.
    """
    if not os.path.lexists(target):
        os.replace(old, target)
        return
    files = recorded_files(old)
    for entry in sorted(old.rglob("*"), reverse=True):  # contents before their directory
        relative = entry.relative_to(old)
        if entry.is_dir() and not entry.is_symlink():
            with suppress(OSError):  # not empty
                entry.rmdir()
        elif str(relative) == RECORD:
            continue
        elif match_description(entry, files.get(relative.as_posix(), [])) or _is_same(entry, target / relative):
            entry.unlink()
        elif not os.path.lexists(target / relative):  # added during the replacement
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            os.replace(entry, target / relative)
    if [entry.name for entry in old.iterdir()] in ([RECORD], []):
        shutil.rmtree(old)
    else:
        logger.warning(f"{old} keeps files that somebody put there while {target.name} was written.")


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except (OSError, NotImplementedError):  # the file system has no hard links
        shutil.copy2(source, target, follow_symlinks=False)


def _is_same(one: Path, other: Path) -> bool:
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and one.readlink() == other.readlink()
    return other.is_file() and (one.samefile(other) or describe_file(one) == describe_file(other))
