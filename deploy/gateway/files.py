"""Files that survive a kill of the process and a loss of power: whole or absent."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PART = ".part"  # ending of temporary names


def write_part(folder: Path, data: bytes) -> Path:
    """Write a file of a temporary name, and return its path when its content is on the disk.

    Raises:
        OSError: it cannot be written, for example as the disk is full; nothing is left of it.
    """
    part = folder / f"{uuid.uuid4().hex}{PART}"
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        part.unlink(missing_ok=True)
        raise
    return part


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all; a file of that name is replaced.

    Raises:
        OSError: it cannot be written; an older file is left as it was.
    """
    move(write_part(path.parent, data), path)


def remove_parts(folder: Path) -> None:
    """Remove the temporary files that a killed process has left in a folder."""
    for part in folder.glob(f"{'[0-9a-f]' * 32}{PART}"):
        part.unlink()


def write_json(path: Path, content: Any) -> None:
    """Write JSON as `write_whole` does."""
    write_whole(path, json.dumps(content, indent=1).encode())


def move(source: Path, target: Path) -> None:
    """Rename a file or folder on the same disk; a file of that name is replaced.

    Raises:
        OSError: it cannot be renamed.
    """
    os.replace(source, target)
    sync(target.parent)


def make_folder(folder: Path) -> None:
    """Make a folder below one that exists, and have the names on the way to it written to the disk.

    Raises:
        OSError: it cannot be made.
    """
    if not folder.parent.is_dir():
        make_folder(folder.parent)
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def sync(path: Path) -> None:
    """Have the names in a folder, or the content of a file, written to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_known(folder: Path, patterns: Iterable[str], trees: Iterable[str] = ()) -> bool:
    """Remove files of known names, and the folders that are then empty; others stay.

    Args:
        folder: a folder.
        patterns: glob patterns below the folder of the files to remove.
        trees: names in the folder of whole folders to remove.

    Returns:
        Whether the folder is gone.
    """
    for name in trees:
        shutil.rmtree(folder / name, ignore_errors=True)
    for pattern in patterns:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    for place in (*(path for path in folder.glob("*") if path.is_dir()), folder):
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()
    return not folder.exists()
