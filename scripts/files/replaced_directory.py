"""A directory that is replaced as a whole, but only while all of its files are as this program wrote them."""

from __future__ import annotations

import glob
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

from ..errors import InputError
from .record import OLD, PARTIAL, RECORD, describe_file, has_record, read_record, write_record


def _keep_all(path: PurePath) -> bool:
    return False


@contextmanager
def replace_directory(target: Path, is_by_product: Callable[[PurePath], bool] = _keep_all) -> Iterator[Path]:
    """Fill a temporary directory, record its files, and put it in the place of an older one.

    Args:
        target: the directory; an older one is left as it is unless the new one is complete.
        is_by_product: whether a file, by its path in the directory, comes from the use of the directory: it is not
            recorded, and is removed with an older directory.

    Yields:
        Path of the temporary directory, which is empty.

    Raises:
        InputError: the older directory holds a file that is not as this function recorded it.
    """
    _finish_replacement(target, is_by_product)
    foreign = _foreign_file(target, is_by_product) if target.exists() else None
    if foreign is not None:
        raise InputError(
            f"{target} holds {foreign}, which was not written with that copy, or was changed since; move it to keep it "
            "and run again, or give a new folder."
        )
    for leftover in target.parent.glob(f"{PARTIAL}{glob.escape(target.name)}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    partial = target.with_name(f"{PARTIAL}{target.name}-{uuid.uuid4().hex}")
    partial.mkdir(parents=True)
    try:
        yield partial
        files = _files(partial, is_by_product)
        write_record(partial, {path.relative_to(partial).as_posix(): [describe_file(path)] for path in files})
        if has_record(target):
            os.replace(target, _old(target))
        os.replace(partial, target)
        _finish_replacement(target, is_by_product)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _finish_replacement(target: Path, is_by_product: Callable[[PurePath], bool]) -> None:
    """Finish an interrupted replacement: restore the older copy, or remove it if the new one is in place."""
    old = _old(target)
    if has_record(old) and not target.exists():
        os.replace(old, target)
    elif has_record(old) and _foreign_file(old, is_by_product) is None:
        shutil.rmtree(old)


def _old(target: Path) -> Path:
    return target.with_name(f"{OLD}{target.name}")


def _foreign_file(directory: Path, is_by_product: Callable[[PurePath], bool]) -> str | None:
    """Return the name of a file in a directory that is not as it was recorded, or None."""
    files = read_record(directory)["files"] if has_record(directory) else {}
    for path in _files(directory, is_by_product):
        name = path.relative_to(directory).as_posix()
        if name != RECORD and (path.is_symlink() or describe_file(path) not in files.get(name, [])):
            return name
    return None


def _files(directory: Path, is_by_product: Callable[[PurePath], bool]) -> list[Path]:
    return [
        path
        for path in sorted(directory.rglob("*"))
        if (path.is_symlink() or not path.is_dir()) and not is_by_product(path.relative_to(directory))
    ]
