"""Bills of materials as CycloneDX JSON, the same for the same content."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from email.message import Message
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .stated_licences import licences


def purl(name: str, version: str) -> str:
    """Return the package URL of a Python package, by its normalised name."""
    return f"pkg:pypi/{name}@{version}"


def application(name: str, version: str, licence: str) -> dict[str, Any]:
    """Return the component that the bill is of, with the SPDX id of its licence."""
    return {
        "bom-ref": "app",
        "type": "application",
        "name": name,
        "version": version,
        "licenses": [{"license": {"id": licence}}],
    }


def hashes(sha256: str | None) -> dict[str, Any]:
    """Return the entry of a component for its SHA-256 sum, or nothing."""
    return {"hashes": [{"alg": "SHA-256", "content": sha256}]} if sha256 else {}


def library(name: str, version: str, headers: Message, sha256: str | None = None) -> dict[str, Any]:
    """Return the component of a Python package.

    Args:
        name: normalised name.
        version: its version.
        headers: headers of its METADATA.
        sha256: SHA-256 sum of its wheel, if that is at hand.
    """
    reference = purl(name, version)
    return {
        "bom-ref": reference,
        "type": "library",
        "name": name,
        "version": version,
        "purl": reference,
        **hashes(sha256),
        **licences(headers),
    }


def needs(headers: Message, references: Mapping[str, str], markers: Mapping[str, str] | None = None) -> list[str]:
    """List the references of the packages that a package requires, as far as they are in the bill.

    Args:
        headers: headers of its METADATA.
        references: reference of each package in the bill by normalised name.
        markers: values of the variables in markers; those of the running Python by default. Extras are left out.
    """
    required = [Requirement(line) for line in headers.get_all("Requires-Dist", [])]
    values = {**(markers or {}), "extra": ""}
    names = {canonicalize_name(one.name) for one in required if not one.marker or one.marker.evaluate(values)}
    return sorted(references[name] for name in names if name in references)


def document(
    root: Mapping[str, Any],
    components: Sequence[Mapping[str, Any]],
    dependencies: Mapping[str, Collection[str]],
) -> str:
    """Return a bill of materials.

    Args:
        root: see `application`; depends on all components.
        components: the components.
        dependencies: by the reference of a component, those that it needs.

    Returns:
        JSON without a time, so that the same content has the same text.
    """
    graph = {root["bom-ref"]: [one["bom-ref"] for one in components], **dependencies}
    content = {
        "metadata": {"component": root},
        "components": components,
        "dependencies": [{"ref": ref, "dependsOn": list(needed)} for ref, needed in graph.items()],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(content))
    head = {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{serial}", "version": 1}
    return json.dumps({**head, **content}, indent=1) + "\n"
