"""A directory in which only recorded, unchanged files are ever replaced or removed."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import InputError, reason
from .record import (
    OLD,
    PARTIAL,
    RECORD,
    Description,
    describe_file,
    has_record,
    match_description,
    read_record,
    write_record,
)
from .replacement import finish_replacement, keep_foreign_files

logger = logging.getLogger(__name__)

LOCK = ".dpmm_lock"
SECONDS_TO_START = 30  # that a part waits for the start of another one
LEFTOVERS = (PARTIAL, f".{PARTIAL}", f".{RECORD}.")  # prefixes of what a killed process leaves; see `atomic_write`
IGNORED_NAMES = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
DIRECTORY = "directory"  # key in a record: the name under which its directory was written
LOCKS_UNSUPPORTED = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


class RecordedDirectory:
    """Write results into a directory that may hold files of other people.

    A file is recorded before it is moved into the directory. So a process that is killed at any moment leaves nothing
    that a later one takes for a file of somebody else.

    Args:
        path: the directory; made absolute.
        option: the setting that names it, for messages.
    """

    def __init__(self, path: str | os.PathLike, option: str = "output_dir") -> None:
        if not str(path):
            raise InputError(f"{option} must name a directory; got an empty name.")
        self.path = Path(path).absolute()
        self.option = option
        self._locks: dict[str, FileLock] = {}
        self._unchanged: dict[str, tuple[Any, Description]] = {}  # by name: stat and description of a file

    def check(self) -> None:
        """Check that the directory may be used.

        Raises:
            InputError: it is a file, holds files but no record, or cannot be read.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.option} must be a directory; {self.path} is a file.")
        if not self.path.is_dir():
            return
        if has_record(self.path):
            read_record(self.path)
            return
        with self._readable():
            names = sorted(entry.name for entry in self.path.iterdir() if not _is_ignored(entry.name))
        if names and not has_record(self.path):  # another part may have made it meanwhile
            raise InputError(
                f"{self.option} {self.path} holds files that this program did not write, such as {names[0]!r}; give an "
                f"empty or new directory, such as {self.path / 'anomaly_results'}."
            )

    def open(self) -> None:
        """Create the directory and its record if missing, and remove the leftovers of killed processes.

        Raises:
            InputError: see `check` and `lock`; or the directory cannot be written.
        """
        self.check()
        with self._writable():
            self.path.mkdir(parents=True, exist_ok=True)
        with self.lock(), self._writable():
            for entry in list(self.path.iterdir()):
                if entry.name.startswith(OLD):
                    finish_replacement(entry, self.path / entry.name.removeprefix(OLD).partition("-")[2])
            for entry in list(self.path.iterdir()):
                if entry.name.startswith(LEFTOVERS):
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
            if not has_record(self.path):
                write_record(self.path, {})

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the directory against other processes.

        Raises:
            InputError: another process holds the lock, or that of a part.
        """
        with self._hold(LOCK):
            for part in self.path.glob(f"{LOCK}-*"):
                with self._hold(part.name), suppress(OSError):
                    part.unlink()
            yield

    @contextmanager
    def open_part(self, part: str) -> Iterator[None]:
        """Open and lock a part of the directory: several processes may each write directories of their own part.

        Leftovers stay, because they may be what another part is writing.

        Args:
            part: name of the part.

        Raises:
            InputError: another process has the same part or the whole directory; or see `open`.
        """
        self.check()
        with self._writable():
            self.path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            with self._hold(LOCK, SECONDS_TO_START), self._writable():
                held.enter_context(self._hold(f"{LOCK}-{part}"))
                if not has_record(self.path):
                    write_record(self.path, {})
            yield

    @contextmanager
    def _hold(self, name: str, timeout: float = 0) -> Iterator[None]:
        """Hold the lock in a file of the directory; wait for it up to ``timeout`` seconds."""
        lock = self._locks.setdefault(name, FileLock(self.path / name))
        try:
            lock.acquire(timeout)
        except Timeout as error:
            raise InputError(
                f"Another run writes into {self.option} {self.path}; wait for its end or give another directory."
            ) from error
        except OSError as error:
            if error.errno not in LOCKS_UNSUPPORTED:
                raise self._refused("written", error) from error
            logger.warning(f"{self.path} lies where files cannot be locked; let no other run write into it.")
        try:
            yield
        finally:
            lock.release()

    def owns(self, name: str) -> bool:
        """Return whether a file is as this program wrote it."""
        return self._describe_own(name) is not None

    @contextmanager
    def write(self, name: str) -> Iterator[Path]:
        """Write a file that appears whole or not at all.

        Args:
            name: name of the file.

        Yields:
            Path of a temporary file to write.

        Raises:
            InputError: see `check_replaceable`.
        """
        target = self.path / name
        self.check_replaceable(name)
        partial = self.path / f"{PARTIAL}{uuid.uuid4().hex}"
        try:
            yield partial
            self.check_replaceable(name)  # again, as writing may have taken long
            record = read_record(self.path)
            earlier, written = self._describe_own(name), describe_file(partial)
            record["files"][name] = [written, *([earlier] if earlier else [])]  # a killed process leaves either
            write_record(self.path, record["files"], record["about"])
            stat = _stat_key(partial)
            os.replace(partial, target)
            self._unchanged[name] = stat, written
        finally:
            partial.unlink(missing_ok=True)

    def write_json(self, content: Any, name: str) -> None:
        """Write an object as JSON; see `write`.

        Raises:
            ValueError: a number is NaN or infinite.
        """
        with self.write(name) as partial, partial.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=4, allow_nan=False)  # piece by piece: it may list thousands of cases
            file.write("\n")

    def check_replaceable(self, name: str) -> None:
        """Check that a file of this name may be written.

        Raises:
            InputError: a file exists that this program did not write, or that was changed later.
        """
        if os.path.lexists(self.path / name) and not self.owns(name):
            raise InputError(
                f"{self.option} {self.path} has a {name} that this program did not write, or that was changed since; "
                "rename it."
            )

    def remove(self, name: str) -> None:
        """Remove a file if it is as this program wrote it; otherwise leave it."""
        if self.owns(name):
            (self.path / name).unlink(missing_ok=True)  # another process of the same run may be faster

    def check_replaceable_directory(self, name: str) -> None:
        """Check that a directory of this name may be written.

        Raises:
            InputError: a file of this name exists, or a non-empty directory that `write_directory` did not write under
                this name.
        """
        target = self.path / name
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise InputError(f"{self.option} {self.path} has a file {name} that this program did not write; rename it.")
        if not target.is_dir():
            return
        if has_record(target):
            with suppress(InputError):
                if read_record(target)["about"].get(DIRECTORY) == name:
                    return
        elif all(_is_ignored(entry.name) for entry in target.iterdir()):
            return
        raise InputError(
            f"{self.option} {self.path} has a directory {name} that this program did not write under this name; "
            "rename it, or give another directory."
        )

    @contextmanager
    def write_directory(self, name: str, about: Mapping[str, Any] | None = None) -> Iterator[Path]:
        """Write a directory with its own record; one rename puts it in place when it is complete.

        An earlier directory of this name is replaced; files that its record does not list stay.

        Args:
            name: name of the directory.
            about: further entries of its record; may be filled until the end.

        Yields:
            Path of a temporary, empty directory to fill.

        Raises:
            InputError: see `check_replaceable_directory`; or a file in it was changed after it was written.
        """
        target = self.path / name
        self.check_replaceable_directory(name)
        unique = uuid.uuid4().hex
        partial, old = self.path / f"{PARTIAL}{unique}", self.path / f"{OLD}{unique[:8]}-{name}"
        partial.mkdir()
        try:
            yield partial
            paths = sorted(path for path in partial.rglob("*") if path.is_file() and not path.is_symlink())
            files = {path.relative_to(partial).as_posix(): [describe_file(path)] for path in paths}
            write_record(partial, files, {**(about or {}), DIRECTORY: name})
            self.check_replaceable_directory(name)
            if target.is_dir():
                keep_foreign_files(target, partial)
                os.replace(target, old)
                try:
                    os.replace(partial, target)
                except BaseException:  # including Ctrl-C
                    if not target.exists():
                        os.replace(old, target)
                    raise
                finish_replacement(old, target)
            else:
                os.replace(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _describe_own(self, name: str) -> Description | None:
        """Return the description of a file if it is as this program wrote it, otherwise None."""
        path, known = self.path / name, read_record(self.path)["files"].get(name, [])
        if not known or path.is_symlink() or not path.is_file():
            return None
        stat, description = self._unchanged.get(name, (None, None))
        if stat != _stat_key(path):  # otherwise it need not be hashed again
            description = match_description(path, known)
        return description if description in known else None

    def _refused(self, action: str, error: OSError) -> InputError:
        return InputError(f"{self.option} {self.path} cannot be {action} ({reason(error)}); give another directory.")

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._refused("read", error) from error

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._refused("written", error) from error


def _stat_key(path: Path) -> tuple[int, ...]:
    """Return numbers that change whenever a file is written, without reading it."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _is_ignored(name: str) -> bool:
    return name in IGNORED_NAMES or name.startswith((LOCK, *LEFTOVERS))
