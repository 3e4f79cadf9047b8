"""Installed Python packages, and the sets of them that the pins of the bundle name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from email.message import Message
from importlib.metadata import distributions
from pathlib import Path
from typing import cast

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from ..errors import InputError, reason

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = "bundle"  # the set of requirements.txt
ENVIRONMENT = "environment"  # the set of all that is installed


@dataclass(frozen=True)
class Package:
    """An installed package.

    Attributes:
        name: normalised name.
        version: its version.
        headers: headers of its METADATA.
        pinned: the version that the pins ask for; None if they do not name it.
        licence_files: names of the files in it that hold licences and notices, sorted.
    """

    name: str
    version: str
    headers: Message
    pinned: str | None
    licence_files: tuple[str, ...] = ()


def read_pins(path: Path) -> dict[str, str]:
    """Read the versions that a file of pins asks for on this machine, by normalised name.

    Raises:
        InputError: the file is missing, or has a line other than ``NAME==VERSION [; MARKER]``.
    """
    try:
        lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    except OSError as error:
        raise InputError(f"The pins {path.name} cannot be read ({reason(error)}); take the whole bundle.") from error
    pins: dict[str, str] = {}
    for line in filter(None, lines):
        try:
            requirement = Requirement(line)
            (pin,) = requirement.specifier
            if pin.operator != "==":
                raise ValueError(pin.operator)
        except (InvalidRequirement, ValueError) as error:
            raise InputError(f"{path.name} must pin packages as NAME==VERSION; got {line!r}.") from error
        if requirement.marker is None or requirement.marker.evaluate():
            pins[canonicalize_name(requirement.name)] = pin.version
    return pins


def installed_packages(folders: Iterable[str] | None = None) -> dict[str, Package]:
    """Return the installed packages by normalised name, sorted.

    Args:
        folders: where to look, such as ``site-packages``; None for the running Python's.
    """
    found: dict[str, Package] = {}
    for each in distributions() if folders is None else distributions(path=list(folders)):
        headers = cast(Message, each.metadata)
        name = headers.get("Name")
        if name and canonicalize_name(name) not in found:  # the first is the one that is imported
            files = sorted({Path(file).name for file in headers.get_all("License-File", [])})
            key = str(canonicalize_name(name))
            found[key] = Package(key, each.version, headers, None, tuple(files))
    return dict(sorted(found.items()))


def packages_of(name: str, installed: dict[str, Package]) -> list[Package]:
    """Return the installed packages of a set, by name.

    Args:
        name: ``bundle`` for requirements.txt, an extra such as ``dev`` for requirements-dev.txt, ``environment`` for
            all that is installed.
        installed: see `installed_packages`.

    Raises:
        InputError: there is no such set, or one of its packages is not installed.
    """
    if name == ENVIRONMENT:
        return list(installed.values())
    path = ROOT / ("requirements.txt" if name == BUNDLE else f"requirements-{name}.txt")
    if not path.is_file():
        known = sorted(one.stem.removeprefix("requirements-") for one in ROOT.glob("requirements-*.txt"))
        raise InputError(f"pins must be of {', '.join([BUNDLE, *known, ENVIRONMENT])}; got {name!r}.")
    pins = read_pins(path)
    if missing := sorted(set(pins) - set(installed)):
        raise InputError(
            f"This environment lacks {len(missing)} packages of {path.name}, such as {missing[0]}; install them with "
            f"`pip install -r {path.name}`, or give other pins."
        )
    return [
        Package(each.name, each.version, each.headers, pins[key], each.licence_files)
        for key, each in installed.items()
        if key in pins
    ]
