"""Files of a bill of materials: CycloneDX JSON, and a page of licences."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError
from ..files import RecordedDirectory
from ..metadata import read_metadata
from .document import application, document, hashes, library, needs
from .environment import BUNDLE, ENVIRONMENT, ROOT, Package, installed_packages, packages_of
from .page import licence_page

logger = logging.getLogger(__name__)


def write_sbom(output_dir: str | os.PathLike = "sbom_output", pins: str | Sequence[str] = BUNDLE) -> None:
    """Write ``NAME.cdx.json`` and ``NAME_licences.md`` of the running Python's packages.

    Args:
        output_dir: directory for the files; those of an earlier run are replaced.
        pins: names of sets of packages: ``bundle``, an extra such as ``dev``, or ``environment`` for all that is
            installed.

    Raises:
        InputError: a set does not exist or is not installed, or the directory holds files of somebody else.
    """
    names = [pins] if isinstance(pins, str) else list(pins)
    if not names:
        raise InputError(f"pins must name at least one set of packages, such as {BUNDLE}; got none.")
    installed = installed_packages()
    sets = {str(name): packages_of(str(name), installed) for name in names}
    directory = RecordedDirectory(str(output_dir))
    directory.open()
    with directory.lock():
        for name, packages in sets.items():
            others = [each.name for each in packages if each.pinned not in (None, each.version)]
            if others:
                logger.warning(
                    f"{name}: {len(others)} packages have other versions than the pins, such as {others[0]}."
                )
            title = "all that is installed" if name == ENVIRONMENT else name
            with directory.write(f"{name}.cdx.json") as partial:
                partial.write_text(bill_of_packages(packages), encoding="utf-8")
            with directory.write(f"{name}_licences.md") as partial:
                partial.write_text(licence_page(title, packages), encoding="utf-8")
    logger.info(f"bill of materials: {directory.path}")


def bill_of_packages(packages: Sequence[Package]) -> str:
    """Return the bill of materials of the bundle with these packages, and the weights that it downloads."""
    metadata = read_metadata()
    root = application(metadata["name"], metadata["version"], "Apache-2.0")
    libraries = [library(each.name, each.version, each.headers) for each in packages]
    references = {each.name: one["bom-ref"] for each, one in zip(packages, libraries, strict=True)}
    dependencies = {references[each.name]: needs(each.headers, references) for each in packages}
    return document(root, [*downloads(), *libraries], dependencies)


def downloads() -> list[dict[str, Any]]:
    """Return the components of the files that ``large_files.yml`` names."""
    files = yaml.safe_load((ROOT / "large_files.yml").read_text())["large_files"]
    return [
        {
            "bom-ref": file["path"],
            "type": "machine-learning-model",
            "name": Path(file["path"]).name,
            **hashes(file["hash_val"]),
            "licenses": [{"license": {"id": "Apache-2.0"}}],
            "externalReferences": [{"type": "distribution", "url": file["url"]}],
        }
        for file in files
    ]
