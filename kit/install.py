"""Installer of a kit, started by ``install.sh``; needs Python's standard library alone, and no network."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

KIT = Path(__file__).resolve().parent
SUMS = "SHA256SUMS"
WHEELS = "wheels"
GLIBC_MINOR = 28  # of the wheels: glibc 2.28 or later
STATE = ".dpmm_kit"  # in the folder of an installation
UNFINISHED, FINISHED = "unfinished\n", "finished\n"
ENVIRONMENT, BUNDLE, COMMAND = "environment", "bundle", "dpmm"
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
INTERRUPTED = 130  # exit status after Ctrl-C


class InstallError(Exception):
    """A reason not to install, as one sentence: what was expected, what was found, what to do."""


def lock_name(python: str) -> str:
    """Return the name of the file of packages for a version of Python."""
    return f"requirements-{python}.txt"


def main(arguments: list[str]) -> int:
    """Install the kit, and return the exit status."""
    try:
        if len(arguments) != 1 or not arguments[0] or arguments[0].startswith("-"):
            raise InstallError("The installer needs one folder to install into: sh install.sh FOLDER")
        install(Path(arguments[0]).absolute())
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        place = error.filename or "The folder"
        print(f"error: {place} cannot be used ({error.strerror}); see to it and run again.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. Nothing is installed; run again.", file=sys.stderr)
        return INTERRUPTED
    return 0


def install(folder: Path) -> None:
    """Check the machine, the kit and the folder, install, and test the installation.

    Args:
        folder: the folder to install into; new, empty, or with an installation that was interrupted.

    Raises:
        InstallError: a check fails, or a step does.
    """
    check_machine()
    check_folder(folder)
    sums = check_files()
    check_space(folder, sums)
    clear(folder)
    environment = folder / ENVIRONMENT
    print(f"Making an environment of Python {PYTHON} ...", flush=True)
    run([sys.executable, "-m", "venv", "--without-pip", environment], f"{sys.executable} cannot make an environment")
    print("Installing the packages, which takes some minutes ...", flush=True)
    (pip_wheel,) = (KIT / WHEELS).glob("pip-*.whl")  # a system's Python often has no pip for new environments
    pip: list[str | Path] = [environment / "bin" / "python", pip_wheel / "pip", "install", "--quiet", "--no-cache-dir"]
    pip += ["--no-index", "--disable-pip-version-check", "--find-links", KIT / WHEELS, "--no-deps", "--require-hashes"]
    run([*pip, "--requirement", KIT / lock_name(PYTHON)], "pip could not install the packages; see its message above")
    copy_bundle(folder, sums)
    print("Testing the installation ...", flush=True)
    command = environment / "bin" / COMMAND
    for argument in ("weights", "--help"):
        run([command, argument], f"the installation does not work: `{command} {argument}` failed")
    os.sync()  # before the folder is called finished
    (folder / COMMAND).symlink_to(command.relative_to(folder))
    (folder / STATE).write_text(FINISHED)
    print(f"\nInstalled. The command is {folder / COMMAND}")


def check_machine() -> None:
    """Check that the wheels of the kit run on this machine."""
    if sys.implementation.name != "cpython" or not (KIT / lock_name(PYTHON)).is_file():
        versions = " or ".join(sorted(path.stem.partition("-")[2] for path in KIT.glob(lock_name("*"))))
        raise InstallError(
            f"This kit needs CPython {versions}; {sys.executable} is {sys.implementation.name} {PYTHON}."
        )
    library, version = platform.libc_ver()
    machine = f"{sys.platform} on {platform.machine()} with {library or 'another C library'} {version}".strip()
    is_new = library == "glibc" and [int(part) for part in version.split(".")[:2]] >= [2, GLIBC_MINOR]
    if sys.platform != "linux" or platform.machine() != "x86_64" or sys.maxsize < 2**32 or not is_new:
        raise InstallError(
            f"This kit needs Linux on x86-64 (64 bits) with glibc 2.{GLIBC_MINOR} or later, such as Debian 10, Ubuntu "
            f"20.04 or RHEL 8; this is {machine}."
        )


def check_folder(folder: Path) -> None:
    """Check that a folder is new, empty, or holds an installation that was interrupted."""
    if folder.resolve().is_relative_to(KIT) or os.pathsep in str(folder):
        raise InstallError(f"Give a folder outside the kit, whose name has no {os.pathsep!r}; got {folder}.")
    if os.path.lexists(folder) and not folder.is_dir():
        raise InstallError(f"{folder} is not a folder; give a new one.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / STATE).is_file():
        raise InstallError(f"{folder} holds files that this kit did not install; give a new folder.")
    if (folder / STATE).read_text() == FINISHED:
        raise InstallError(f"{folder} holds an installation already; give a new folder, or delete this one first.")


def check_files() -> dict[str, str]:
    """Check every file of the kit, and return the SHA-256 sums by name."""
    lines = (KIT / SUMS).read_text(errors="replace").splitlines() if (KIT / SUMS).is_file() else []
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if lock_name(PYTHON) not in sums:
        raise InstallError(f"The kit in {KIT} has no whole {SUMS}; copy the kit again.")
    print(f"Checking the {len(sums)} files of the kit ...", flush=True)
    for name, digest in sums.items():
        if not (KIT / name).is_file():
            raise InstallError(f"The kit in {KIT} lacks {name}; copy the kit again.")
        if file_sha256(KIT / name) != digest:
            raise InstallError(f"{KIT / name} is damaged: its SHA-256 sum is not that of {SUMS}; copy the kit again.")
    return sums


def file_sha256(path: Path) -> str:
    """Return the SHA-256 sum of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_space(folder: Path, sums: dict[str, str]) -> None:
    """Check that the disk has room for the unpacked wheels and the bundle."""
    lock = (KIT / lock_name(PYTHON)).read_text()
    needed = 0
    for name, digest in sums.items():
        if digest in lock:
            with zipfile.ZipFile(KIT / name) as wheel:
                needed += sum(member.file_size for member in wheel.infolist())
        elif name.startswith(f"{BUNDLE}/"):
            needed += (KIT / name).stat().st_size
    parent = next(each for each in (folder, *folder.parents) if each.is_dir())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise InstallError(
            f"{folder} needs {needed / 1e9:.1f} GB, and its disk has {free / 1e9:.1f} GB free; give a folder elsewhere."
        )


def clear(folder: Path) -> None:
    """Make the folder if it is missing, remove what an interrupted installation left, and call it unfinished."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STATE).write_text(UNFINISHED)
    for name in (ENVIRONMENT, BUNDLE):
        if (folder / name).exists():
            shutil.rmtree(folder / name)
    (folder / COMMAND).unlink(missing_ok=True)


def copy_bundle(folder: Path, sums: dict[str, str]) -> None:
    """Copy the bundle, and link its weights to where the installed command looks for them."""
    for name in sums:
        if name.startswith(f"{BUNDLE}/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(KIT / name, folder / name)
    models = folder / ENVIRONMENT / "lib" / f"python{PYTHON}" / "site-packages" / "dpmm" / "bundle" / "models"
    for weights in (folder / BUNDLE / "models").glob("dinov2_*.pth"):
        (models / weights.name).symlink_to(os.path.relpath(weights, models))


def run(command: Sequence[str | Path], failure: str) -> None:
    """Run a step without the settings of pip and Python that this machine may have.

    Raises:
        InstallError: it fails.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    environment["PIP_CONFIG_FILE"] = os.devnull
    if subprocess.run(list(map(str, command)), env=environment, check=False).returncode:
        raise InstallError(f"{failure}. The folder is not usable; run again.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
