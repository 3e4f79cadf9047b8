"""Bill of materials of the image, as CycloneDX JSON.

It lists the Python packages with licences and hashes as their wheels have them, the model and the base image. The
packages of the base image's operating system are not in it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from wheelhouse import Wheel, sha256

sys.path.append(str(Path(__file__).resolve().parents[1]))
from scripts.sbom.document import application, document, hashes, library, needs, purl


def bill_of_materials(metadata: dict[str, Any], base_image: str, model: Path, wheels: Sequence[Wheel]) -> str:
    """Return the bill of materials.

    Args:
        metadata: the bundle's ``metadata.json``.
        base_image: the base image, ``NAME:TAG@sha256:DIGEST``.
        model: the fitted model.
        wheels: the Python packages.
    """
    image, _, digest = base_image.partition("@sha256:")
    name, _, tag = image.partition(":")
    components = [
        {"bom-ref": "model", "type": "machine-learning-model", "name": model.name, **hashes(sha256(model))},
        {"bom-ref": "base-image", "type": "container", "name": name, "version": tag, **hashes(digest)},
    ]
    references = {wheel.name: purl(wheel.name, wheel.version) for wheel in wheels}
    dependencies = {}
    for wheel in wheels:
        headers = read_headers(wheel.path)
        components.append(library(wheel.name, wheel.version, headers, wheel.sha256))
        dependencies[references[wheel.name]] = needs(headers, references)
    root = application(metadata["name"], metadata["version"], "Apache-2.0")
    return document(root, components, dependencies)


def read_headers(wheel: Path) -> Message:
    """Return the headers of a wheel's METADATA."""
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA") and name.count("/") == 1)
        return HeaderParser().parsestr(archive.read(name).decode())
