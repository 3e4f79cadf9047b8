"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file beside its place, and move it there at the end.

    Args:
        path: the file; its folder is made where it is missing.

    Yields:
        Where to write.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield partial
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: str | os.PathLike) -> Iterator[Path]:
    """Fill a folder beside its place, and move it there at the end, where it replaces an older one.

    Args:
        path: the folder.

    Yields:
        An empty folder to fill.
    """
    target = Path(path)
    partial, old = target.with_name(f".{target.name}.partial"), target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():  # a run was ended between the two moves
        os.replace(old, target)
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if target.exists():
            os.replace(target, old)
        os.replace(partial, target)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        if old.exists():
            os.replace(old, target)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def file_sha256(path: str | os.PathLike) -> str:
    """Compute the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_json(content: Any, path: str | os.PathLike) -> None:
    """Write what JSON can hold; see `atomic_write`."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def write_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], path: str | os.PathLike) -> None:
    """Write a table, with empty fields where a row lacks a column or has None; see `atomic_write`."""
    with atomic_write(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
