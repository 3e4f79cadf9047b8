"""Bill of materials of the image, as CycloneDX JSON.

It lists the Python packages with licences and hashes as their wheels have them, the model and the base image. The
packages of the base image's operating system are not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wheelhouse import Wheel, image

from kit.bill import describe_wheels
from scripts.files import file_sha256
from scripts.sbom.document import application, document, hashes


def bill_of_materials(metadata: dict[str, Any], base_image: str, model: Path, wheels: Sequence[Wheel]) -> str:
    """Return the bill of materials.

    Args:
        metadata: the bundle's ``metadata.json``.
        base_image: the base image, ``NAME:TAG@sha256:DIGEST``.
        model: the fitted model.
        wheels: the Python packages.
    """
    name_and_tag, _, digest = base_image.partition("@sha256:")
    name, _, tag = name_and_tag.partition(":")
    libraries, dependencies = describe_wheels(wheels, image("gpu").markers)
    components = [
        {"bom-ref": "model", "type": "machine-learning-model", "name": model.name, **hashes(file_sha256(model))},
        {"bom-ref": "base-image", "type": "container", "name": name, "version": tag, **hashes(digest)},
        *libraries,
    ]
    return document(application(metadata["name"], metadata["version"], "Apache-2.0"), components, dependencies)
