"""On-disk cache of the patch embeddings of cases, so that no image is embedded twice."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import marshal
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import InputError, reason
from ..files import PARTIAL, RecordedDirectory, atomic_write, has_record, write_record
from ..models.fitted_state import is_plain
from .geometry import CaseGeometry

CACHED = re.compile(r"[0-9a-f]{32}\.np[yz]")
PARTIAL_FILE = re.compile(r"\.[0-9a-f]{32}\.np[yz]\..+")  # see `atomic_write`
MAX_PARTIAL_AGE = 3600.0  # seconds; an older partial file was left by a killed process


class EmbeddingCache:
    """A half-precision file of embeddings per case and a small file of its geometry next to it.

    They are named by a digest of all that the embeddings depend on. A file appears whole or not at all, so an
    interrupted run resumes where it stopped. The oldest files that this run does not use make room for new ones; other
    files in the folder stay. Names and contents hold nothing of the patient but the embeddings and the outline of the
    foreground.

    Args:
        directory: the folder; by default a temporary one that is removed with the cache.
        limit_gb: maximal size of the folder in 10^9 bytes; None for no limit.
        preprocessing: transform of the cases. It is described at construction, before transforms acquire run-time
            state.
        within: parent of a temporary folder: a `RecordedDirectory`, which clears the files that a killed run left.

    Raises:
        InputError: a limit that is not positive, or a folder that cannot be written or holds files of others.
    """

    def __init__(
        self,
        directory: str | os.PathLike | None = None,
        limit_gb: float | None = None,
        preprocessing: Any = None,
        within: str | os.PathLike | None = None,
    ) -> None:
        if limit_gb is not None and limit_gb <= 0:
            raise InputError(f"embedding_store_gb must be positive, or off for no limit; got {limit_gb}.")
        self._temporary: tempfile.TemporaryDirectory | None = None
        if directory is None:
            if within is not None:
                Path(within).mkdir(parents=True, exist_ok=True)
            self._temporary = tempfile.TemporaryDirectory(prefix=PARTIAL, dir=within)
            directory = self._temporary.name
        self.directory = RecordedDirectory(directory, "embedding_store").path
        self._prepare()
        self.limit = None if limit_gb is None else limit_gb * 1e9
        self.preprocessing = describe(preprocessing)
        self._in_use: set[Path] = set()

    def get(self, key: Any) -> Path | None:
        """Find the file with this key.

        Args:
            key: any object that JSON can hold.

        Returns:
            The file; None if it is missing or damaged.
        """
        path = self._path(key)
        try:
            array = np.load(path, mmap_mode="r")
            if not isinstance(array, np.ndarray) or array.dtype != np.float16 or array.ndim != 3 or not array.size:
                return None
            os.utime(path)
        except Exception:  # numpy raises almost anything for a damaged header
            return None
        self._in_use.add(path)
        return path

    def put(self, key: Any, embeddings: np.ndarray) -> Path:
        """Write embeddings.

        Args:
            key: any object that JSON can hold.
            embeddings: ``[slices, patches, D]``.

        Returns:
            The file.

        Raises:
            InputError: the files of this run exceed the limit, or the file cannot be written.
        """
        path = self._path(key)
        self._in_use.add(path)
        self._make_room(embeddings.nbytes)
        return self._write(path, lambda file: np.save(file, embeddings.astype(np.float16)), embeddings.size * 2)

    def get_geometry(self, key: Any) -> Path | None:
        """Find the file with the geometry of the case with this key.

        Returns:
            The file; None if it is missing, as in caches of version 0.5 and earlier, or damaged.
        """
        path = self._path(key).with_suffix(".npz")
        try:
            CaseGeometry.load(path)
            os.utime(path)
        except Exception:  # numpy raises almost anything for a damaged file
            return None
        self._in_use.add(path)
        return path

    def put_geometry(self, key: Any, geometry: CaseGeometry) -> Path:
        """Write the geometry of a case.

        Args:
            key: that of its embeddings.
            geometry: the geometry.

        Returns:
            The file.

        Raises:
            InputError: the file cannot be written.
        """
        path = self._path(key).with_suffix(".npz")
        self._in_use.add(path)
        return self._write(path, geometry.save, geometry.foreground.size // 8)

    def _write(self, path: Path, save: Callable[[BinaryIO], None], n_bytes: int) -> Path:
        try:
            with atomic_write(path) as partial, partial.open("wb") as file:
                save(file)
        except OSError as error:
            raise InputError(
                f"The embeddings of a case need {n_bytes / 1e6:.0f} MB, which embedding_store {self.directory} cannot "
                f"take ({reason(error)}); make room (what was embedded is kept) or give another embedding_store."
            ) from error
        return path

    def _path(self, key: Any) -> Path:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.directory / f"{digest[:32]}.npy"

    def _prepare(self) -> None:
        """Make the folder and mark it as a cache, unless it is of others; remove the partial files of killed runs."""
        try:
            if not self._is_cache():
                RecordedDirectory(self.directory, "embedding_store").check()
            self.directory.mkdir(parents=True, exist_ok=True)
            if not has_record(self.directory):
                write_record(self.directory, {})
            for entry in self.directory.iterdir():
                if PARTIAL_FILE.fullmatch(entry.name) and time.time() - entry.lstat().st_mtime > MAX_PARTIAL_AGE:
                    entry.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(
                f"embedding_store {self.directory} cannot be written ({reason(error)}); give another embedding_store."
            ) from error

    def _is_cache(self) -> bool:
        """Return whether the folder holds embeddings alone, as versions up to 0.4 left it."""
        return self.directory.is_dir() and all(
            CACHED.fullmatch(entry.name) or entry.name.startswith(".") for entry in self.directory.iterdir()
        )

    def _make_room(self, n_bytes: int) -> None:
        if self.limit is None:
            return
        files = {path: path.stat() for path in self.directory.glob("*.np[yz]") if CACHED.fullmatch(path.name)}
        total = sum(stat.st_size for stat in files.values()) + n_bytes
        for path in sorted(files, key=lambda path: files[path].st_mtime):
            if total > self.limit and path not in self._in_use:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
                total -= files[path].st_size
        if total > self.limit:
            raise InputError(
                f"The embeddings of this fit need more than the {self.limit / 1e9:g} GB of embedding_store_gb; "
                "raise it (what was embedded is kept) or fit on fewer images."
            )


def file_identity(path: str | os.PathLike) -> list[Any]:
    """Identify a version of a file, or of the files of a folder, by path, size and modification time.

    Args:
        path: a file, or a folder of a DICOM series.

    Returns:
        A list that JSON can hold.
    """
    root = Path(path).resolve()
    files = sorted(root.iterdir()) if root.is_dir() else [root]
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def describe(thing: Any) -> Any:
    """Describe a transform by its class and its attributes.

    A class is named by its module, or by its ``cache_identity`` if it has one. Transforms of the bundle keep theirs
    when they move to another module, so that embeddings cached before are found again.

    Args:
        thing: a transform, or a value of one of its attributes.

    Returns:
        An object that JSON can hold; the same in every process.
    """
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    if isinstance(thing, dict):
        return {str(key): describe(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [describe(value) for value in thing]
    if isinstance(thing, set | frozenset):
        return sorted(json.dumps(describe(value), sort_keys=True) for value in thing)
    if isinstance(thing, type) or hasattr(thing, "__code__"):  # a class or a function
        name = vars(thing).get("cache_identity") or f"{thing.__module__}.{thing.__qualname__}"
        return name if isinstance(thing, type) or "<" not in name else [name, *_describe_lambda(thing)]
    if hasattr(thing, "tolist"):  # an array
        return [describe(type(thing)), describe(thing.tolist())]
    if isinstance(thing, functools.partial):
        return [describe(type(thing)), describe([thing.func, thing.args, thing.keywords])]
    return [describe(type(thing)), describe(getattr(thing, "__dict__", {}))]


def _describe_lambda(function: Any) -> list[Any]:
    """Describe an unnamed function, for example of a config, by its code and the values that it holds."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    code = function.__code__
    settings = function.__globals__.get("__local_refs", {})  # MONAI keeps the values of the ids in an expression there
    values = [
        [name, settings.get(name)] for name in code.co_consts if isinstance(name, str) and is_plain(settings.get(name))
    ]
    digest = hashlib.sha256(marshal.dumps(code, 2)).hexdigest()  # version 2: the same in every process
    return [digest, describe([function.__defaults__, function.__kwdefaults__, cells, values])]
