"""Wheels of the image's packages, downloaded once so that the image is built without a network."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))
from kit.wheelhouse import PLATFORMS, Target, Wheel, find_wheels, lock  # noqa: E402
from kit.wheelhouse import download as download_wheels  # noqa: E402
from scripts.errors import InputError  # noqa: E402

__all__ = ["LOCK", "PLATFORMS", "Wheel", "download", "image", "read"]

LOCK = "requirements.txt"


def image(platform: str) -> Target:
    """Return what the image's wheels are for: Python and glibc of the base image in the Dockerfile.

    Args:
        platform: ``gpu`` or ``cpu``.
    """
    kept = ("nvidia-cuda-runtime",)  # holoscan links it
    return Target(ROOT / "requirements-deploy.txt", "3.11.14", 36, platform, kept)


def download(folder: Path, platform: str) -> None:
    """Download the wheels and write `LOCK`: their versions and SHA-256 sums.

    Args:
        folder: folder of the wheels; those that are there already are kept.
        platform: ``gpu`` or ``cpu``.

    Raises:
        InputError: pip fails, or finds no build of torch for the CPU.
    """
    (folder / LOCK).write_text(lock(download_wheels(folder, image(platform))))


def read(folder: Path, platform: str) -> list[Wheel]:
    """Read a wheelhouse.

    Args:
        folder: folder that `download` filled.
        platform: ``gpu`` or ``cpu``.

    Returns:
        The wheels by name.

    Raises:
        InputError: wheels are missing, or are others than those downloaded for this platform.
    """
    wheels = find_wheels(folder, image(platform))
    if not (folder / LOCK).is_file() or (folder / LOCK).read_text() != lock(wheels):
        raise InputError(
            f"{folder / LOCK} does not describe the wheels next to it; run `package.py wheelhouse --platform "
            f"{platform}`."
        )
    return wheels
