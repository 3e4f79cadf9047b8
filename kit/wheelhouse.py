"""Wheels of pinned packages for another machine, downloaded once and installed there without a network."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from zipfile import ZipFile

from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

from scripts.errors import InputError
from scripts.files import file_sha256

PLATFORMS = ("gpu", "cpu")
# Packages that only a GPU uses, by the start of their names.
CUDA = ("nvidia-", "cuda-", "cupy-", "triton==")


@dataclass(frozen=True)
class Target:
    """Machine that wheels are for, with Linux on x86-64, and what it needs.

    Attributes:
        requirements: the pins, ``NAME==VERSION [; MARKER]`` in each line.
        python: version of CPython, such as ``3.11.14``.
        glibc_minor: its glibc is version 2 and this, or later.
        platform: ``gpu``, or ``cpu`` without the packages that only a GPU uses.
        kept: packages that stay on the platform ``cpu`` all the same.
    """

    requirements: Path
    python: str
    glibc_minor: int
    platform: str
    kept: tuple[str, ...] = ()

    @property
    def markers(self) -> dict[str, str]:
        """Values of the variables in markers of requirements."""
        major, minor, _ = self.python.split(".")
        return {
            "implementation_name": "cpython",
            "os_name": "posix",
            "platform_machine": "x86_64",
            "platform_python_implementation": "CPython",
            "platform_system": "Linux",
            "python_full_version": self.python,
            "python_version": f"{major}.{minor}",
            "sys_platform": "linux",
        }

    @property
    def platform_tags(self) -> list[str]:
        """Platforms of wheels that run there, the best first."""
        tags = [f"manylinux_2_{minor}_x86_64" for minor in range(self.glibc_minor, 4, -1)]
        return tags + [f"{name}_x86_64" for name in ("manylinux2014", "manylinux2010", "manylinux1", "linux")]

    def tags(self) -> dict[Tag, int]:
        """Return the tags of wheels that run there, with their places in the order of preference."""
        major, minor, _ = map(int, self.python.split("."))
        tags = [
            *cpython_tags((major, minor), platforms=self.platform_tags),
            *compatible_tags((major, minor), f"cp{major}{minor}", self.platform_tags),
        ]
        return {tag: place for place, tag in reversed(list(enumerate(tags)))}

    def pins(self) -> dict[str, str]:
        """Return the versions of the packages by normalised name."""
        versions: dict[str, str] = {}
        for line in self.requirements.read_text().splitlines():
            requirement = Requirement(line)
            is_left_out = self.platform == "cpu" and line.startswith(CUDA) and requirement.name not in self.kept
            if not is_left_out and (requirement.marker is None or requirement.marker.evaluate(self.markers)):
                (version,) = requirement.specifier
                versions[canonicalize_name(requirement.name)] = str(Version(version.version))
        return versions


@dataclass(frozen=True)
class Wheel:
    """A wheel file.

    Attributes:
        name: normalised name of the package.
        version: its version, with a local part such as ``+cpu`` if there is one.
        path: the file.
        sha256: SHA-256 sum of the file, hexadecimal.
    """

    name: str
    version: str
    path: Path
    sha256: str

    def headers(self) -> Message:
        """Read the headers of its METADATA."""
        with ZipFile(self.path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
            (name,) = (name for name in names if name.count("/") == 1)
            return HeaderParser().parsestr(archive.read(name).decode())


def download(folder: Path, target: Target) -> list[Wheel]:
    """Download the wheels of a target by pip.

    Args:
        folder: folder of the wheels; those that are there already are kept.
        target: what they are for.

    Returns:
        The wheels by name.

    Raises:
        InputError: pip fails, or finds no build of torch for the CPU.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(folder), "--implementation", "cp", "--python-version", target.python]
    command += [part for tag in target.platform_tags for part in ("--platform", tag)]
    command += [f"{name}=={version}" for name, version in target.pins().items()]
    if subprocess.run(command, check=False).returncode:
        raise InputError(f"pip could not download the wheels for Python {target.python}; run the command again.")
    return find_wheels(folder, target)


def find_wheels(folder: Path, target: Target) -> list[Wheel]:
    """Find the wheel of each package of a target.

    Args:
        folder: folder of the wheels, perhaps with those of other targets.
        target: what they are for.

    Returns:
        The wheels by name.

    Raises:
        InputError: wheels are missing, or those of torch need a GPU's libraries that the platform leaves out.
    """
    wanted, places = target.pins(), target.tags()
    found: dict[str, tuple[Version, int, Path]] = {}
    for path in sorted(folder.glob("*.whl")):
        name, version, _, tags = parse_wheel_filename(path.name)
        is_for_gpu = name.startswith("torch") and target.platform == "cpu" and version.local != "cpu"
        fitting = [places[tag] for tag in tags if tag in places]
        if version.public == wanted.get(name) and fitting and not is_for_gpu:
            wheel = (version, -min(fitting), path)
            found[name] = max(found.get(name, wheel), wheel)
    missing = [f"{name}=={version}" for name, version in wanted.items() if name not in found]
    if missing:
        hint = "download them"
        if any(name.startswith("torch") for name in missing) and target.platform == "cpu":
            hint += (
                " with pip's setting of PyTorch's index of builds for the CPU (versions ending in +cpu), or take "
                "--platform gpu, which runs without a GPU too"
            )
        raise InputError(f"{folder} lacks the wheels of {', '.join(missing)}; {hint}.")
    return [Wheel(name, str(version), path, file_sha256(path)) for name, (version, _, path) in sorted(found.items())]


def read_wheel(path: Path) -> Wheel:
    """Return a wheel by its file."""
    name, version, _, _ = parse_wheel_filename(path.name)
    return Wheel(name, str(version), path, file_sha256(path))


def lock(wheels: Iterable[Wheel]) -> str:
    """Return the wheels as requirements with hashes, as pip reads them."""
    return "".join(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n" for wheel in wheels)
