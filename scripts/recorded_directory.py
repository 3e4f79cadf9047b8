"""A directory with a record of the files that this program wrote into it.

Only what the record lists, and nobody has changed since, is ever replaced or removed.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .errors import InputError, reason_of
from .whole_file import file_sha256, write_json

logger = logging.getLogger(__name__)

RECORD = ".dpmm_record.json"
LOCK = ".dpmm_lock"
PARTIAL = ".dpmm_partial-"  # begins the names of files and directories that are being written
OLD = ".dpmm_old-"  # begins the names of directories that are being replaced
NOT_CONTENT = frozenset({LOCK, ".DS_Store", "Thumbs.db", "desktop.ini"})


class RecordedDirectory:
    """Write files and directories of results beside what other people keep there.

    Files get into the record before they get into the directory, so that a process that is killed at any moment leaves
    nothing behind that the next one takes for somebody else's.

    Args:
        path: the directory; made absolute at once.
        option: name of the setting that gave it, for messages.
    """

    def __init__(self, path: str | os.PathLike, option: str = "output_dir") -> None:
        if not str(path):
            raise InputError(f"{option} must name a directory; got an empty name.")
        self.path = Path(path).absolute()
        self.option = option

    def check(self) -> None:
        """Check that the directory may be used.

        Raises:
            InputError: it is a file, or holds files but no record.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.option} must be a directory; {self.path} is a file.")
        if not self.path.is_dir() or has_record(self.path):
            return
        found = sorted(entry.name for entry in self.path.iterdir() if not _is_ignored(entry.name))
        if found:
            raise InputError(
                f"{self.option} {self.path} holds files that this program did not write, such as {found[0]!r}; give an "
                f"empty or new directory, such as {self.path / 'anomaly_results'}."
            )

    def open(self) -> None:
        """Make the directory, with an empty record where it has none, and clear what a killed process left.

        Raises:
            InputError: see `check`; or the directory cannot be written.
        """
        self.check()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for entry in list(self.path.iterdir()):
                if entry.name.startswith(OLD):
                    _restore_or_discard(entry, self.path / entry.name.removeprefix(OLD))
            for entry in list(self.path.iterdir()):
                if entry.name.startswith((PARTIAL, f".{RECORD}.")):
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
            if not has_record(self.path):
                write_record(self.path, {})
        except OSError as error:
            raise InputError(
                f"{self.option} {self.path} cannot be written ({error.strerror}); give another directory."
            ) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from writing into the directory meanwhile.

        Raises:
            InputError: another process writes into it.
        """
        lock = FileLock(self.path / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise InputError(
                f"Another run writes into {self.option} {self.path}; wait for its end or give another directory."
            ) from error
        except OSError as error:
            raise InputError(
                f"{self.option} {self.path} cannot be written ({error.strerror}); give another directory."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def owns(self, name: str) -> bool:
        """Whether a file is as this program wrote it."""
        return _is_recorded(self.path / name, read_record(self.path)["files"].get(name, []))

    @contextmanager
    def write(self, name: str) -> Iterator[Path]:
        """Write a file that appears whole or not at all.

        Args:
            name: of the file.

        Yields:
            Where to write.

        Raises:
            InputError: there is a file of that name that this program did not write, or that was changed since.
        """
        target = self.path / name
        self.check_replaceable(name)
        partial = self.path / f"{PARTIAL}{uuid.uuid4().hex}"
        try:
            yield partial
            record = read_record(self.path)
            earlier = record["files"].get(name, [])[:1]
            record["files"][name] = [_describe(partial), *earlier]  # both, until the next time: either may be there
            write_record(self.path, record["files"], record["about"])
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    def write_json(self, content: Any, name: str) -> None:
        """Write what JSON can hold; see `write`.

        Raises:
            ValueError: a number is NaN or infinite, which JSON does not know.
        """
        text = json.dumps(content, indent=4, allow_nan=False) + "\n"
        with self.write(name) as partial:
            partial.write_text(text, encoding="utf-8")

    def check_replaceable(self, name: str) -> None:
        """Check that a file of that name may be written.

        Raises:
            InputError: there is one that this program did not write, or that was changed since.
        """
        target = self.path / name
        if (target.exists() or target.is_symlink()) and not self.owns(name):
            raise InputError(
                f"{self.option} {self.path} has a {name} that this program did not write, or that was changed since; "
                "rename it."
            )

    def remove(self, name: str) -> None:
        """Remove a file if it is as this program wrote it; otherwise leave it."""
        if self.owns(name):
            (self.path / name).unlink()

    def check_replaceable_directory(self, name: str) -> None:
        """Check that a directory of that name may be replaced by another run's.

        Raises:
            InputError: there is a file of that name, or a directory without a record that is not empty.
        """
        target = self.path / name
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise InputError(f"{self.option} {self.path} has a file {name} that this program did not write; rename it.")
        if target.is_dir() and not has_record(target) and any(not _is_ignored(each.name) for each in target.iterdir()):
            raise InputError(
                f"{self.option} {self.path} has a directory {name} that this program did not write; rename it."
            )

    @contextmanager
    def write_directory(self, name: str, about: Mapping[str, Any] | None = None) -> Iterator[Path]:
        """Write a directory with a record of its own, which appears by one rename when it is complete.

        An earlier directory of that name is replaced; files in it that its record does not list stay.

        Args:
            name: of the directory.
            about: what its record says besides the files; may be filled until the end.

        Yields:
            An empty directory to fill.

        Raises:
            InputError: see `check_replaceable_directory`; or a file in it was changed since it was written.
        """
        target = self.path / name
        self.check_replaceable_directory(name)
        partial = self.path / f"{PARTIAL}{uuid.uuid4().hex}"
        partial.mkdir()
        try:
            yield partial
            files = {path.name: [_describe(path)] for path in sorted(partial.iterdir())}
            write_record(partial, files, about)
            if target.is_dir():
                _keep_foreign(target, partial)
                old = self.path / f"{OLD}{name}"
                os.replace(target, old)
                try:
                    os.replace(partial, target)
                except OSError:
                    os.replace(old, target)
                    raise
                _restore_or_discard(old, target)
            else:
                os.replace(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def has_record(path: Path) -> bool:
    """Whether a directory carries a record, so that nothing in it is a case."""
    return (path / RECORD).is_file()


def read_record(path: Path) -> dict[str, Any]:
    """Read a directory's record.

    Args:
        path: the directory.

    Returns:
        ``files``, by name a list of ``size`` and ``sha256``: as it is, and as it may be where a process was killed; and
        ``about``, what else was recorded.

    Raises:
        InputError: it cannot be read.
    """
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        return {"files": dict(record["files"]), "about": dict(record["about"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"The record {path / RECORD} cannot be read ({reason_of(error)}); give another output_dir."
        ) from error


def write_record(path: Path, files: Mapping[str, Any], about: Mapping[str, Any] | None = None) -> None:
    """Write a directory's record; see `read_record`."""
    content = {
        "note": "These files were written by the anomaly bundle, which replaces or removes no others.",
        "files": dict(files),
        "about": dict(about or {}),
    }
    write_json(content, path / RECORD)


def is_intact(path: Path) -> bool:
    """Whether every file that a directory's record lists is there as it was written."""
    try:
        files = read_record(path)["files"]
    except InputError:
        return False
    return all(_is_recorded(path / name, known) for name, known in files.items())


def _describe(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": file_sha256(path)}


def _is_recorded(path: Path, known: list[dict[str, Any]]) -> bool:
    if not known or path.is_symlink() or not path.is_file():
        return False
    size = path.stat().st_size
    return any(each["size"] == size for each in known) and _describe(path) in known


def _is_ignored(name: str) -> bool:
    return name in NOT_CONTENT or name.startswith((PARTIAL, f".{RECORD}."))


def _keep_foreign(old: Path, new: Path) -> None:
    """Put what somebody else keeps in a directory into the one that replaces it, without taking it from the former."""
    files = read_record(old)["files"] if has_record(old) else {}
    for entry in old.iterdir():
        if entry.name == RECORD or _is_recorded(entry, files.get(entry.name, [])):
            continue
        if (new / entry.name).exists():
            raise InputError(
                f"{entry} was not written by this program, or was changed since; rename it to keep it, and run again."
            )
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, new / entry.name, symlinks=True, copy_function=_link_or_copy)
        else:
            _link_or_copy(entry, new / entry.name)


def _link_or_copy(source: str | os.PathLike, target: str | os.PathLike) -> str | os.PathLike:
    try:
        os.link(source, target, follow_symlinks=False)
    except (OSError, NotImplementedError):  # no hard links there
        shutil.copy2(source, target, follow_symlinks=False)
    return target


def _restore_or_discard(old: Path, target: Path) -> None:
    """Finish a replacement: put the former directory back if the new one did not come, else remove what is in both."""
    if not target.exists():
        os.replace(old, target)
        return
    files = read_record(old)["files"] if has_record(old) else {}
    for entry in sorted(old.rglob("*"), reverse=True):  # what a directory holds comes before it
        relative = entry.relative_to(old)
        if entry.is_dir() and not entry.is_symlink():
            with suppress(OSError):  # not empty
                entry.rmdir()
        elif str(relative) == RECORD:
            continue
        elif _is_recorded(entry, files.get(str(relative), [])) or _is_same(entry, target / relative):
            entry.unlink()
        elif not (target / relative).exists():  # came meanwhile
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            os.replace(entry, target / relative)
    if [entry.name for entry in old.iterdir()] in ([RECORD], []):
        shutil.rmtree(old)
    else:
        logger.warning(f"{old} keeps files that somebody put there while {target.name} was written.")


def _is_same(one: Path, other: Path) -> bool:
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and one.readlink() == other.readlink()
    return other.is_file() and (one.samefile(other) or _describe(one) == _describe(other))
