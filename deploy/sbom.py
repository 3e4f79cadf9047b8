"""Bill of materials of the image, as CycloneDX JSON.

It lists the Python packages with licences and hashes as their wheels have them, the model and the base image. The
packages of the base image's operating system are not in it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from wheelhouse import Wheel, sha256

LONGEST_NAME = 100  # characters; longer values of `License` are the text of a licence


def bill_of_materials(metadata: dict[str, Any], base_image: str, model: Path, wheels: Sequence[Wheel]) -> str:
    """Return the bill of materials.

    Args:
        metadata: the bundle's ``metadata.json``.
        base_image: the base image, ``NAME:TAG@sha256:DIGEST``.
        model: the fitted model.
        wheels: the Python packages.
    """
    root = {
        "bom-ref": "app",
        "type": "application",
        "name": metadata["name"],
        "version": metadata["version"],
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    base, model_hash = base_image.partition("@sha256:"), sha256(model)
    components = [
        {
            "bom-ref": "model",
            "type": "machine-learning-model",
            "name": model.name,
            "hashes": [{"alg": "SHA-256", "content": model_hash}],
        },
        {
            "bom-ref": "base-image",
            "type": "container",
            "name": base[0].partition(":")[0],
            "version": base[0].partition(":")[2],
            **({"hashes": [{"alg": "SHA-256", "content": base[2]}]} if base[2] else {}),
        },
    ]
    references = {wheel.name: f"pkg:pypi/{wheel.name}@{wheel.version}" for wheel in wheels}
    dependencies = [{"ref": "app", "dependsOn": ["model", "base-image", *references.values()]}]
    for wheel in wheels:
        headers = read_headers(wheel.path)
        components.append(
            {
                "bom-ref": references[wheel.name],
                "type": "library",
                "name": wheel.name,
                "version": wheel.version,
                "purl": references[wheel.name],
                "hashes": [{"alg": "SHA-256", "content": wheel.sha256}],
                **licences(headers),
            }
        )
        required = [Requirement(line) for line in headers.get_all("Requires-Dist", [])]
        names = {
            canonicalize_name(one.name) for one in required if not one.marker or one.marker.evaluate({"extra": ""})
        }
        depends_on = sorted(references[name] for name in names if name in references)
        dependencies.append({"ref": references[wheel.name], "dependsOn": depends_on})
    content = {"metadata": {"component": root}, "components": components, "dependencies": dependencies}
    serial = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(content))  # the same for the same content
    head = {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{serial}", "version": 1}
    return json.dumps({**head, **content}, indent=1) + "\n"


def read_headers(wheel: Path) -> Message:
    """Return the headers of a wheel's METADATA."""
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA") and name.count("/") == 1)
        return HeaderParser().parsestr(archive.read(name).decode())


def licences(headers: Message) -> dict[str, Any]:
    """Return the licences that a package states: an SPDX expression, or else names.

    Args:
        headers: headers of METADATA.

    Returns:
        ``{"licenses": [...]}``, or nothing if it states none.
    """
    expression = headers.get("License-Expression")
    if expression:
        return {"licenses": [{"expression": expression}]}
    classifiers = [line.split(" :: ") for line in headers.get_all("Classifier", [])]
    names = [parts[-1] for parts in classifiers if parts[0] == "License" and len(parts) > 2]
    stated = headers.get("License", "").strip()
    if stated and "\n" not in stated and len(stated) <= LONGEST_NAME:
        names = [stated]
    return {"licenses": [{"license": {"name": name}} for name in names]} if names else {}
