"""Bills of materials and licences of wheels, which need no installation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpmm.weights import FILES
from scripts.files import file_sha256
from scripts.sbom.document import application, document, hashes, library, needs, purl
from scripts.sbom.environment import Package

from .wheelhouse import Wheel

LICENCES = dict(zip(FILES, ("Apache-2.0", "MIT"), strict=True))  # of the encoder's weights; see docs/licences.md


def describe_wheels(
    wheels: Sequence[Wheel], markers: Mapping[str, str]
) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Return the components of wheels, and by the reference of each those that it needs.

    Args:
        wheels: the wheels.
        markers: values of the variables in markers of requirements, of the machine that the wheels are for.
    """
    references = {wheel.name: purl(wheel.name, wheel.version) for wheel in wheels}
    components, dependencies = [], {}
    for wheel in wheels:
        headers = wheel.headers()
        components.append(library(wheel.name, wheel.version, headers, wheel.sha256))
        dependencies[references[wheel.name]] = needs(headers, references, markers)
    return components, dependencies


def bill_of_kit(
    metadata: Mapping[str, Any], models: Sequence[Path], wheels: Sequence[Wheel], markers: Mapping[str, str]
) -> str:
    """Return the bill of materials of a kit for one version of Python.

    Args:
        metadata: the bundle's ``metadata.json``.
        models: weights of the encoder, and a fitted model if there is one.
        wheels: the Python packages.
        markers: see `describe_wheels`.
    """
    files = [
        {
            "bom-ref": path.name,
            "type": "machine-learning-model",
            "name": path.name,
            **hashes(file_sha256(path)),
            **({"licenses": [{"license": {"id": LICENCES[path.name]}}]} if path.name in LICENCES else {}),
        }
        for path in models
    ]
    libraries, dependencies = describe_wheels(wheels, markers)
    root = application(metadata["name"], metadata["version"], "Apache-2.0")
    return document(root, [*files, *libraries], dependencies)


def packages(wheels: Sequence[Wheel]) -> list[Package]:
    """Return wheels as packages, for the page of licences."""
    found = []
    for wheel in wheels:
        headers = wheel.headers()
        files = sorted({Path(file).name for file in headers.get_all("License-File", [])})
        found.append(Package(wheel.name, wheel.version, headers, None, tuple(files)))
    return found
