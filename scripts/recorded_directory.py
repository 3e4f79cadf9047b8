"""A directory with a record of the files that this program wrote into it.

Only what the record lists, and nobody has changed since, is ever replaced or removed.
"""

from __future__ import annotations

import errno
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

from .errors import InputError, reason, reason_of
from .files import file_sha256, write_json

logger = logging.getLogger(__name__)

RECORD = ".dpmm_record.json"
LOCK = ".dpmm_lock"
PARTIAL = ".dpmm_partial-"  # begins the names of files and directories that are being written
OLD = ".dpmm_old-"  # begins the names of directories that are being replaced
LEFTOVERS = (
    PARTIAL,
    f".{PARTIAL}",
    f".{RECORD}.",
)  # begin the names of what a killed process leaves; see `atomic_write`
NOT_CONTENT = frozenset({LOCK, ".DS_Store", "Thumbs.db", "desktop.ini"})
DIRECTORY = "directory"  # under which a record says the name of the directory that it was written for
WITHOUT_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # what a file system that has none says

Description = dict[str, Any]  # size and sha256 of a file


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
        self._lock = FileLock(self.path / LOCK, timeout=0)
        self._unchanged: dict[str, tuple[Any, Description]] = {}  # by name: the file's state, and what it holds

    def check(self) -> None:
        """Check that the directory may be used.

        Raises:
            InputError: it is a file, or holds files but no record, or cannot be read.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.option} must be a directory; {self.path} is a file.")
        if not self.path.is_dir():
            return
        if has_record(self.path):
            read_record(self.path)
            return
        with self._readable():
            found = sorted(entry.name for entry in self.path.iterdir() if not _is_ignored(entry.name))
        if found:
            raise InputError(
                f"{self.option} {self.path} holds files that this program did not write, such as {found[0]!r}; give an "
                f"empty or new directory, such as {self.path / 'anomaly_results'}."
            )

    def open(self) -> None:
        """Make the directory, with an empty record where it has none, and clear what a killed process left.

        Raises:
            InputError: see `check`; or the directory cannot be written, or another process writes into it.
        """
        self.check()
        with self._writable():
            self.path.mkdir(parents=True, exist_ok=True)
        with self.lock(), self._writable():
            for entry in list(self.path.iterdir()):
                if entry.name.startswith(OLD):
                    _restore_or_discard(entry, self.path / entry.name.removeprefix(OLD).partition("-")[2])
            for entry in list(self.path.iterdir()):
                if entry.name.startswith(LEFTOVERS):
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
            if not has_record(self.path):
                write_record(self.path, {})

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from writing into the directory meanwhile.

        Raises:
            InputError: another process writes into it.
        """
        try:
            self._lock.acquire()
        except Timeout as error:
            raise InputError(
                f"Another run writes into {self.option} {self.path}; wait for its end or give another directory."
            ) from error
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise self._refused("written", error) from error
            logger.warning(f"{self.path} lies where files cannot be locked; let no other run write into it.")
        try:
            yield
        finally:
            self._lock.release()

    def owns(self, name: str) -> bool:
        """Whether a file is as this program wrote it."""
        return self._found(name) is not None

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
            self.check_replaceable(name)  # once more: writing may have taken long
            record = read_record(self.path)
            earlier, written = self._found(name), describe_file(partial)
            record["files"][name] = [written, *([earlier] if earlier else [])]  # either is there if this is killed
            write_record(self.path, record["files"], record["about"])
            state = _state(partial)
            os.replace(partial, target)
            self._unchanged[name] = state, written
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
        """Remove a file if it is as this program wrote it; otherwise leave it.

        Args:
            name: of the file.
        """
        if self.owns(name):
            (self.path / name).unlink(missing_ok=True)  # another process of the same run may be first

    def check_replaceable_directory(self, name: str) -> None:
        """Check that a directory of that name may be written.

        Args:
            name: of the directory.

        Raises:
            InputError: there is a file of that name, or a directory that is not empty and that `write_directory` did
                not write under this name.
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
        unique = uuid.uuid4().hex
        partial, old = self.path / f"{PARTIAL}{unique}", self.path / f"{OLD}{unique[:8]}-{name}"
        partial.mkdir()
        try:
            yield partial
            files = {path.relative_to(partial).as_posix(): [describe_file(path)] for path in _files(partial)}
            write_record(partial, files, {**(about or {}), DIRECTORY: name})
            self.check_replaceable_directory(name)
            if target.is_dir():
                _keep_foreign(target, partial)
                os.replace(target, old)
                try:
                    os.replace(partial, target)
                except BaseException:  # Ctrl-C for one
                    if not target.exists():
                        os.replace(old, target)
                    raise
                _restore_or_discard(old, target)
            else:
                os.replace(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _found(self, name: str) -> Description | None:
        """Describe a file that is as this program wrote it; None where it is not."""
        path, known = self.path / name, read_record(self.path)["files"].get(name, [])
        if not known or path.is_symlink() or not path.is_file():
            return None
        state, description = self._unchanged.get(name, (None, None))
        if state != _state(path):  # otherwise it is not hashed again
            description = _recorded(path, known)
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
        files = {
            str(name): [{"size": int(each["size"]), "sha256": str(each["sha256"])} for each in known]
            for name, known in dict(record["files"]).items()
        }
        return {"files": files, "about": dict(record["about"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
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
    return all(_recorded(path / name, known) for name, known in files.items())


def changed_files(path: Path) -> list[str]:
    """Name the files that a directory's record lists, that are there, and that somebody changed.

    Args:
        path: the directory; need not exist.

    Returns:
        Their names, in order.
    """
    files = _files_of_record(path)
    return sorted(name for name, known in files.items() if _is_there(path / name) and not _recorded(path / name, known))


def _files_of_record(path: Path) -> dict[str, list[Description]]:
    """List what a directory's record lists; nothing where it has none, or none that can be read."""
    try:
        return read_record(path)["files"]
    except InputError:
        return {}


def _files(path: Path) -> list[Path]:
    return sorted(each for each in path.rglob("*") if each.is_file() and not each.is_symlink())


def _state(path: Path) -> tuple[int, ...]:
    """Tell one writing of a file from another, without reading it."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def describe_file(path: Path) -> Description:
    """Describe a file as records do, by ``size`` and ``sha256``."""
    return {"size": path.stat().st_size, "sha256": file_sha256(path)}


def _recorded(path: Path, known: list[Description]) -> Description | None:
    """Describe a file where it is one of the known ones; None otherwise."""
    if not known or path.is_symlink() or not path.is_file():
        return None
    size = path.stat().st_size
    if not any(each["size"] == size for each in known):
        return None
    description = describe_file(path)
    return description if description in known else None


def _is_ignored(name: str) -> bool:
    return name in NOT_CONTENT or name.startswith(LEFTOVERS)


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _keep_foreign(old: Path, new: Path) -> None:
    """Put what somebody else keeps in a directory into the one that replaces it, without taking it from the former."""
    files = _files_of_record(old)
    for entry in sorted(old.rglob("*")):
        relative = entry.relative_to(old)
        target = new / relative
        if entry.is_dir() and not entry.is_symlink():
            if not any(entry.iterdir()):
                target.mkdir(parents=True, exist_ok=True)
        elif str(relative) != RECORD and not _recorded(entry, files.get(relative.as_posix(), [])):
            if _is_there(target):
                raise InputError(
                    f"{old.name}/{relative.as_posix()} was not written by this program, or was changed since; rename "
                    "it to keep it, and run again."
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(entry, target)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except (OSError, NotImplementedError):  # no hard links there
        shutil.copy2(source, target, follow_symlinks=False)


def _restore_or_discard(old: Path, target: Path) -> None:
    """Finish a replacement: put the former directory back if the new one did not come, else remove what is in both."""
    if not _is_there(target):
        os.replace(old, target)
        return
    files = _files_of_record(old)
    for entry in sorted(old.rglob("*"), reverse=True):  # what a directory holds comes before it
        relative = entry.relative_to(old)
        if entry.is_dir() and not entry.is_symlink():
            with suppress(OSError):  # not empty
                entry.rmdir()
        elif str(relative) == RECORD:
            continue
        elif _recorded(entry, files.get(relative.as_posix(), [])) or _is_same(entry, target / relative):
            entry.unlink()
        elif not _is_there(target / relative):  # came meanwhile
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            os.replace(entry, target / relative)
    if [entry.name for entry in old.iterdir()] in ([RECORD], []):
        shutil.rmtree(old)
    else:
        logger.warning(f"{old} keeps files that somebody put there while {target.name} was written.")


def _is_same(one: Path, other: Path) -> bool:
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and one.readlink() == other.readlink()
    return other.is_file() and (one.samefile(other) or describe_file(one) == describe_file(other))
