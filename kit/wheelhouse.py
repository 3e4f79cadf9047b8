"""Wheels of the image's packages, downloaded once so that the image is built without a network."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements-deploy.txt"
LOCK = "requirements.txt"
# Those of the base image in the Dockerfile: Python 3.11 on Debian 12, which has version 2.36 of glibc.
PYTHON = "3.11.14"
GLIBC_MINOR = 36
PLATFORMS = ("gpu", "cpu")
# Packages that only a GPU uses, by the start of their names; holoscan links the runtime.
CUDA = ("nvidia-", "cuda-", "cupy-", "triton==")
NEEDED = "nvidia-cuda-runtime"


@dataclass(frozen=True)
class Wheel:
    """A wheel file.

    Args:
        name: normalised name of the package.
        version: its version, with a local part such as ``+cpu`` if there is one.
        path: the file.
        sha256: SHA-256 sum of the file, hexadecimal.
    """

    name: str
    version: str
    path: Path
    sha256: str


def pins(platform: str) -> dict[str, str]:
    """Return the versions of the image's packages by normalised name.

    Args:
        platform: ``gpu`` or ``cpu``.
    """
    major, minor, _ = PYTHON.split(".")
    image = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": PYTHON,
        "python_version": f"{major}.{minor}",
        "sys_platform": "linux",
    }
    versions: dict[str, str] = {}
    for line in REQUIREMENTS.read_text().splitlines():
        requirement = Requirement(line)
        is_left_out = platform == "cpu" and line.startswith(CUDA) and requirement.name != NEEDED
        if not is_left_out and (requirement.marker is None or requirement.marker.evaluate(image)):
            (version,) = requirement.specifier
            versions[canonicalize_name(requirement.name)] = str(Version(version.version))
    return versions


def download(folder: Path, platform: str) -> None:
    """Download the wheels by pip and write `LOCK`: their versions and SHA-256 sums, as pip reads them.

    Args:
        folder: folder of the wheels; those that are there already are kept.
        platform: ``gpu`` or ``cpu``.

    Raises:
        SystemExit: pip fails, or finds no build of torch for the CPU.
    """
    tags = [f"manylinux_2_{minor}_x86_64" for minor in range(GLIBC_MINOR, 4, -1)]
    tags += [f"{name}_x86_64" for name in ("manylinux2014", "manylinux2010", "manylinux1", "linux")]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(folder), "--implementation", "cp", "--python-version", PYTHON]
    command += [part for tag in tags for part in ("--platform", tag)]
    command += [f"{name}=={version}" for name, version in pins(platform).items()]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit("pip could not download the wheels; run the command again to continue.")
    (folder / LOCK).write_text(lock(find_wheels(folder, platform)))


def find_wheels(folder: Path, platform: str) -> list[Wheel]:
    """Find the wheel of each package.

    Args:
        folder: folder of the wheels.
        platform: ``gpu`` or ``cpu``.

    Returns:
        The wheels by name.

    Raises:
        SystemExit: wheels are missing, or those of torch need a GPU's libraries that the platform leaves out.
    """
    wanted = pins(platform)
    found: dict[str, tuple[Version, Path]] = {}
    for path in sorted(folder.glob("*.whl")):
        name, version, _, _ = parse_wheel_filename(path.name)
        is_for_gpu = name.startswith("torch") and platform == "cpu" and version.local != "cpu"
        if version.public == wanted.get(name) and not is_for_gpu:
            found[name] = max(found.get(name, (version, path)), (version, path))
    missing = [f"{name}=={version}" for name, version in wanted.items() if name not in found]
    if missing:
        hint = "run `package.py wheelhouse`"
        if any(name.startswith("torch") for name in missing) and platform == "cpu":
            hint += (
                " with pip's setting of PyTorch's index of builds for the CPU (versions ending in +cpu), or take "
                "--platform gpu, which runs without a GPU too"
            )
        raise SystemExit(f"{folder} lacks the wheels of {', '.join(missing)}; {hint}.")
    return [Wheel(name, str(version), path, sha256(path)) for name, (version, path) in sorted(found.items())]


def lock(wheels: Iterable[Wheel]) -> str:
    """Return the wheels as requirements with hashes."""
    return "".join(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n" for wheel in wheels)


def read(folder: Path, platform: str) -> list[Wheel]:
    """Read a wheelhouse.

    Args:
        folder: folder that `download` filled.
        platform: ``gpu`` or ``cpu``.

    Returns:
        The wheels by name.

    Raises:
        SystemExit: wheels are missing, or are others than those downloaded for this platform.
    """
    wheels = find_wheels(folder, platform)
    if not (folder / LOCK).is_file() or (folder / LOCK).read_text() != lock(wheels):
        raise SystemExit(
            f"{folder / LOCK} does not describe the wheels next to it; run `package.py wheelhouse --platform "
            f"{platform}`."
        )
    return wheels


def sha256(path: Path) -> str:
    """Return the SHA-256 sum of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
