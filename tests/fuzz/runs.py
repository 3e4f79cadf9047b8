"""Attacks on whole runs: a kill or a full disk at the n-th change of a file, and results among sources.

What a process does to files is seen by an audit hook, whichever function does it. From the n-th change on each one
fails, so that nothing is cleaned up either, as after `kill -9`.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

from scripts.data.cases import find_cases
from scripts.errors import InputError

from ..tiny_cases import brain, save, save_dicom_series
from .judge import judge_sources, snapshot
from .reading import SHAPE
from .whole_run import fitted, judge_results, try_run

CHANGES = frozenset({"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"})
LATEST = 40  # change at which a run is killed
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Killed(BaseException):
    """End of the process."""


class Fault:
    """Fault that fails every change of files below some folders from the n-th on.

    Args:
        folders: the folders.
        n: the first change that fails, from 0.
        make: function that makes the exception.
    """

    def __init__(self, folders: list[Path], n: int, make: Callable[[], BaseException]) -> None:
        self.folders = tuple(f"{folder}{os.sep}" for folder in folders)
        self.n = n
        self.make = make
        self.n_changes = 0
        self._lock = threading.Lock()

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Count a change, and fail from the n-th on."""
        path = arguments[0]
        if not isinstance(path, (str, bytes, os.PathLike)) or (event == "open" and not _writes(*arguments[1:3])):
            return
        name = str(Path(os.fsdecode(path)).absolute())
        if not name.startswith(self.folders) or "lock" in Path(name).name:  # a lock ends with its process
            return
        with self._lock:
            self.n_changes += 1
            fails = self.n_changes > self.n
        if fails:
            raise self.make()


_active: list[Fault] = []


@contextmanager
def active(fault: Fault) -> Iterator[None]:
    """Activate a fault inside a with statement."""
    if not _hooked:
        _hooked.append(sys.addaudithook(_hook))
    _active.append(fault)
    try:
        yield
    finally:
        _active.clear()


def try_runs(random: Random, folder: Path) -> tuple[str, list[str]]:
    """Try an interrupted run and another one after it, in layouts where sources and results collide."""
    study = folder / "study"
    layout = random.choice(sorted(LAYOUTS))
    data, output = LAYOUTS[layout](study)
    before_is_whole, add_foreign = random.random() < 0.4, random.random() < 0.5
    cause = random.choice(sorted(CAUSES))
    n = random.randrange(LATEST)
    fitted()
    cases = _cases(data, output)
    sources, problems, temporary = snapshot(study), [], folder / "temporary"
    settings = {"dataset_dir": str(data), "output_dir": str(output)}
    if before_is_whole:
        _, said = try_run("inference", data, **settings)
        problems += [f"before: {each}" for each in said]
    temporary.mkdir()
    fault = Fault([study, temporary], n, CAUSES[cause])
    with patch.object(tempfile, "tempdir", str(temporary)), active(fault) if cause != "nothing" else nullcontext():
        problems += _run_with_fault(data, settings)
    if left := sorted(snapshot(temporary)):
        problems.append(f"left outside the output folder: {left}")
    foreign = _add_foreign(output) if add_foreign else []
    kept = {**sources, **{name: text for name, text in snapshot(study).items() if Path(name).name in foreign}}
    error, said = try_run("inference", data, **settings, threshold=0.9)
    problems += [f"the run after it: {each}" for each in said]
    if error is None:
        problems += [f"the run after it: {each}" for each in judge_results(output, cases)]
    elif layout in CLEAR:
        problems.append(f"the run after it was refused: {error}")
    what = f"{layout}, {cause} at change {n}" + (", after a whole run" if before_is_whole else "")
    return what + (f", {len(foreign)} foreign files" if foreign else ""), problems + judge_sources(kept, study)


def _cases(data: Path, output: Path) -> list[dict[str, Any]] | None:
    try:
        return find_cases(data, exclude=output)
    except InputError:
        return None  # the run is to say the same


def _run_with_fault(data: Path, settings: dict[str, str]) -> list[str]:
    try:
        _, problems = try_run("inference", data, **settings)
    except Killed:
        return []
    return problems


def _add_foreign(output: Path) -> list[str]:
    """Add a user's files to the results of finished cases."""
    masks = [path for path in output.rglob("*_mask.nii.gz") if not any(part.startswith(".") for part in path.parts)]
    for mask in masks:
        (mask.parent / f"{mask.parent.name}_mask_corrected.nii.gz").write_bytes(b"drawn by hand")
        (mask.parent / "notes.txt").write_text("seen")
    return ["notes.txt", *(f"{mask.parent.name}_mask_corrected.nii.gz" for mask in masks)] if masks else []


def apart(study: Path) -> tuple[Path, Path]:
    """Lay out results in a separate folder."""
    _save_cases(study / "in")
    return study / "in", study / "out"


def inside(study: Path) -> tuple[Path, Path]:
    """Lay out results inside the folder of the images."""
    _save_cases(study)
    return study, study / "results"


def same(study: Path) -> tuple[Path, Path]:
    """Lay out results in the folder of the images."""
    _save_cases(study)
    return study, study


def above(study: Path) -> tuple[Path, Path]:
    """Lay out a series in a folder with the name of its case."""
    save_dicom_series(study / "T1", brain(1, SHAPE))
    return study / "T1", study


def above_file(study: Path) -> tuple[Path, Path]:
    """Lay out a file in a folder with the name of its case."""
    save(study / "p7" / "p7.nii.gz", brain(1, SHAPE))
    return study / "p7" / "p7.nii.gz", study


def beside(study: Path) -> tuple[Path, Path]:
    """Lay out a user's folders with the names of cases in the results directory."""
    _save_cases(study / "nifti")
    save(study / "a" / "raw" / "a.nii.gz", brain(7, SHAPE))
    return study / "nifti", study


def occupied(study: Path) -> tuple[Path, Path]:
    """Lay out a user's files in the results directory."""
    _save_cases(study / "in")
    (study / "out" / "a").mkdir(parents=True)
    (study / "out" / "summary.json").write_text("mine")
    (study / "out" / "a" / "thesis.txt").write_text("mine")
    return study / "in", study / "out"


def linked(study: Path) -> tuple[Path, Path]:
    """Lay out a results directory that is a link to the images."""
    _save_cases(study / "in")
    (study / "out").symlink_to(study / "in")
    return study / "in", study / "out"


LAYOUTS: dict[str, Callable[[Path], tuple[Path, Path]]] = {
    layout.__name__: layout for layout in (apart, inside, same, above, above_file, beside, occupied, linked)
}
CLEAR = frozenset({"apart", "inside"})  # layouts without a collision: a run must complete
CAUSES: dict[str, Callable[[], BaseException]] = {
    "nothing": Killed,
    "killed": Killed,
    "disk full": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
}


def _save_cases(folder: Path) -> None:
    for seed, name in enumerate("ab"):
        save(folder / f"{name}.nii.gz", brain(seed, SHAPE))


def _writes(mode: Any, flags: Any) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool(int(flags or 0) & WRITING)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _active and event in CHANGES:
        _active[0].see(event, arguments)


_hooked: list[None] = []
