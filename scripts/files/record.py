"""The record of a directory: size and SHA-256 of every file that this program wrote into it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, reason_of
from .writers import write_json

RECORD = ".dpmm_record.json"
PARTIAL = ".dpmm_partial-"  # prefix of files and directories that are being written
OLD = ".dpmm_old-"  # prefix of directories that are being replaced

Description = dict[str, Any]  # size and sha256 of a file


def file_digest(path: str | os.PathLike, algorithm: str) -> str:
    """Compute the digest of a file by an algorithm of `hashlib`, in hexadecimal."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def file_sha256(path: str | os.PathLike) -> str:
    """Compute the SHA-256 of a file, in hexadecimal."""
    return file_digest(path, "sha256")


def describe_file(path: Path) -> Description:
    """Return the size and the SHA-256 of a file, as records hold them."""
    return {"size": path.stat().st_size, "sha256": file_sha256(path)}


def match_description(path: Path, known: list[Description]) -> Description | None:
    """Return the description of a regular file if it is among the known ones, otherwise None."""
    if not known or path.is_symlink() or not path.is_file():
        return None
    size = path.stat().st_size
    if not any(description["size"] == size for description in known):
        return None
    description = describe_file(path)
    return description if description in known else None


def has_record(path: Path) -> bool:
    """Return whether a directory has a record, so that nothing in it is a case."""
    return (path / RECORD).is_file()


def read_record(path: Path) -> dict[str, Any]:
    """Read the record of a directory.

    Args:
        path: the directory.

    Returns:
        ``files`` maps names to lists of descriptions (``size`` and ``sha256``): the present one, and the one that the
        file may still have if a process was killed. ``about`` holds all other entries.

    Raises:
        InputError: the record cannot be read.
    """
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        files = {
            str(name): [{"size": int(each["size"]), "sha256": str(each["sha256"])} for each in known]
            for name, known in dict(record["files"]).items()
        }
        return {"files": files, "about": dict(record["about"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"The record {path / RECORD} cannot be read ({reason_of(error)}); give another output_dir."
        ) from error


def recorded_files(path: Path) -> dict[str, list[Description]]:
    """Return the files that the record of a directory lists; an empty dict if there is no readable record."""
    try:
        return read_record(path)["files"]
    except InputError:
        return {}


def write_record(path: Path, files: Mapping[str, Any], about: Mapping[str, Any] | None = None) -> None:
    """Write the record of a directory; see `read_record`."""
    content = {
        "note": "These files were written by the anomaly bundle, which replaces or removes no others.",
        "files": dict(files),
        "about": dict(about or {}),
    }
    write_json(content, path / RECORD)


def is_intact(path: Path) -> bool:
    """Return whether every file in the record of a directory is present and unchanged."""
    try:
        files = read_record(path)["files"]
    except InputError:
        return False
    return all(match_description(path / name, known) for name, known in files.items())


def changed_files(path: Path) -> list[str]:
    """List the recorded files of a directory that were changed after they were written.

    Args:
        path: the directory; need not exist.

    Returns:
        Their names, sorted. Missing files are not listed.
    """
    return sorted(
        name
        for name, known in recorded_files(path).items()
        if os.path.lexists(path / name) and not match_description(path / name, known)
    )
