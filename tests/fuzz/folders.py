"""Attacks by folders: links, cycles, deep trees, and entries that are no files."""

from __future__ import annotations

import errno
import os
import pathlib
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

from scripts.data.cases import find_cases

from ..tiny_cases import brain, save
from .judge import judge_sources, snapshot
from .reading import GOOD, SHAPE, read
from .whole_run import judge_results, try_run

WHOLE_RUNS = 0.15  # share of the attacks that are scored and written as well


def try_folders(random: Random, folder: Path) -> tuple[str, list[str]]:
    """Try folders that are no trees of files."""
    data = folder / "data"
    save(data / f"{GOOD}.nii.gz", brain(0, SHAPE))
    save(data / "sub" / "one.nii.gz", brain(1, SHAPE))
    save(folder / "elsewhere" / "two.nii.gz", brain(2, SHAPE))
    ways = [WAYS[name] for name in sorted(random.sample(sorted(WAYS), random.choice([1, 2, 3])))]
    done = [way(random, data) for way in ways]
    unreadable = data / "sub" if random.random() < 0.3 else None
    before = snapshot(folder)
    with refused(unreadable):
        problems = read(data, max_cases=len(before))
        if random.random() < WHOLE_RUNS:
            _, said = try_run("inference", data, dataset_dir=str(data), output_dir=str(folder / "out"))
            problems += said + judge_results(folder / "out", find_cases(data))
    what = ", ".join(done) + (", sub may not be read" if unreadable else "")
    return what, problems + judge_sources(before, folder)


def link_upwards(random: Random, data: Path) -> str:
    """Link to a folder above."""
    place = random.choice([data, data / "sub"])
    target = random.choice([".", "..", data, data.parent])
    (place / "up").symlink_to(target)
    return f"link to {'a parent' if isinstance(target, Path) else target}"


def link_each_other(random: Random, data: Path) -> str:
    """Link two folders to each other, or a link to itself."""
    (data / "a").mkdir()
    (data / "b").mkdir()
    (data / "a" / "to_b").symlink_to(data / "b")
    (data / "b" / "to_a").symlink_to(random.choice([data / "a", Path("..")]))
    (data / "self.nii.gz").symlink_to("self.nii.gz")
    return "links to each other"


def link_nowhere(random: Random, data: Path) -> str:
    """Link to a missing file."""
    (data / "gone.nii.gz").symlink_to(data / "not there")
    (data / "gone").symlink_to(random.choice(["/not/there", "not there"]))
    return "links to nothing"


def link_elsewhere(random: Random, data: Path) -> str:
    """Link to a folder or a file outside, twice."""
    target = random.choice([data.parent / "elsewhere", data.parent / "elsewhere" / "two.nii.gz"])
    for name in ("first", "second"):
        (data / (name + "".join(target.suffixes))).symlink_to(target)
    return f"links to {target.name}"


def nest(random: Random, data: Path) -> str:
    """Nest folders in one another."""
    depth = random.choice([5, 60, 110, 400])
    place = os.open(data, os.O_RDONLY)
    for _ in range(depth):  # the path as a whole may be longer than the system takes
        os.mkdir("n", dir_fd=place)
        inner = os.open("n", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    if random.random() < 0.7:
        file = os.open("deep.nii", os.O_WRONLY | os.O_CREAT, dir_fd=place)
        os.write(file, b"no image")
        os.close(file)
    os.close(place)
    return f"{depth} folders in one another"


def empty(random: Random, data: Path) -> str:
    """Make folders without files, and files without content."""
    for name in ("empty", "empty/er", "folder.nii.gz", "folder.png"):
        (data / name).mkdir(parents=True, exist_ok=True)
    for name in ("nothing.nii.gz", "nothing.png", "nothing.jpg", "nothing.mha", "nothing.nrrd", "nothing"):
        (data / name).touch()
    return "empty folders and files"


def no_file(random: Random, data: Path) -> str:
    """Make pipes, a socket and a link to a device, which look like files: reading them would block."""
    os.mkfifo(data / "pipe.nii.gz")
    os.mkfifo(data / "pipe")
    (data / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        before = os.open(".", os.O_RDONLY)
        try:
            os.chdir(data)  # the path of a socket may have 100 characters
            server.bind("socket.nii")
        finally:
            os.fchdir(before)
            os.close(before)
    return "pipes, a socket, a device"


def many(random: Random, data: Path) -> str:
    """Make many small files, most of them no images."""
    for n in range(200):
        (data / f"file-{n}{random.choice(['.txt', '.json', '', '.png.txt', '.dcm'])}").write_bytes(random.randbytes(20))
    return "200 other files"


WAYS: dict[str, Callable[[Random, Path], str]] = {
    way.__name__: way
    for way in (link_upwards, link_each_other, link_nowhere, link_elsewhere, nest, empty, no_file, many)
}


@contextmanager
def refused(folder: Path | None) -> Iterator[None]:
    """Refuse to list a folder, as without permission; a test as root cannot use permissions."""

    def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
        def listing(path: Any = ".", *arguments: Any) -> Any:
            if folder and not isinstance(path, int) and os.fsdecode(path) == str(folder):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
            return function(path, *arguments)

        return listing

    with (
        patch.object(os, "listdir", guarded(os.listdir)),
        patch.object(os, "scandir", guarded(os.scandir)),
        patch.object(pathlib.Path, "iterdir", guarded(pathlib.Path.iterdir)),
    ):
        yield
