"""Everything that a release of the bundle needs, in one folder."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from scripts.errors import InputError, reason_of
from scripts.export_bundle import export_bundle
from scripts.files import RecordedDirectory, file_digest, read_record, write_json, write_sums
from scripts.metadata import ROOT, read_metadata
from scripts.model_card.fit_report import FitReport
from scripts.model_card.fitted_model import FittedModel

from .archive import write_archive
from .changelog import release_section
from .checks import check_archive
from .hub import write_hub_folder
from .repository import check_committed

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
# The folder of the zoo's archives, from which MONAI downloads if its source is `github`.
ZOO_STORAGE = "https://github.com/Project-MONAI/model-zoo/releases/download/hosting_storage_v1"


def make_release(
    ckpt_path: str | os.PathLike = ROOT / "models" / "model.pt",
    output_dir: str | os.PathLike = "release_output",
    fit_report: str | os.PathLike | None = None,
    name: str | None = None,
    source: str | None = None,
    schema: str | os.PathLike | None = None,
    model_info: str | os.PathLike | None = None,
    allow_dirty: bool = False,
    **settings: Any,
) -> None:
    """Write a folder ``<name>_v<version>`` with all that a release needs, and check it.

    Args:
        ckpt_path: the fitted model.
        output_dir: directory of the folder; an older folder of this name is replaced if its files are unchanged.
        fit_report: ``fit_report.json`` of the fit, for the model card.
        name: name of the bundle; by default that of the metadata, with underscores.
        source: address of the archive in ``model_info.json``; by default the place in the zoo's storage.
        schema: a copy of the schema of the metadata, to check them against it.
        model_info: a copy of the zoo's ``model_info.json``, to check that the version is not used.
        allow_dirty: whether to release files that are not committed.
        settings: values by config id, which replace the values in the configs.

    Raises:
        InputError: something is missing or wrong, or a check of the model zoo fails. Nothing is left then.
    """
    section = release_section()
    if not allow_dirty:
        check_committed(ROOT)
    name = bundle_name() if name is None else str(name)
    if not NAME.fullmatch(name) or "_v" in name:
        raise InputError(f"name must be of letters, digits and underscores, and without '_v'; got {name!r}.")
    title = f"{name}_v{section.version}"
    if model_info is not None:
        check_unused(title, Path(model_info))
    if schema is not None and not Path(schema).is_file():
        raise InputError(f"schema must be a copy of the file at {read_metadata()['schema']}; {schema} is no file.")
    model = FittedModel.read(str(ckpt_path))
    report = None if fit_report is None else FitReport.read(str(fit_report), model)
    directory = RecordedDirectory(str(output_dir))
    directory.open()
    with (
        tempfile.TemporaryDirectory() as work,
        directory.lock(),
        directory.write_directory(title) as folder,
    ):
        bundle = Path(work) / name
        export_bundle(ckpt_path, bundle, **settings)
        names = sorted(read_record(bundle)["files"])  # without encoders that were compiled for this machine
        archive = folder / f"{title}.zip"
        write_archive(bundle, names, section.date, archive)
        write_hub_folder(bundle, names, model, report, folder / "huggingface" / name)
        address = f"{ZOO_STORAGE}/{archive.name}" if source is None else str(source)
        write_json({title: {"checksum": file_digest(archive, "sha1"), "source": address}}, folder / "model_info.json")
        (folder / "release_notes.md").write_text(section.text + "\n", encoding="utf-8")
        write_sums(folder)
        check_archive(archive, None if schema is None else Path(schema).absolute())
    print(f"{directory.path / title}: all checks passed. docs/releasing.md says what is left to do by hand.")


def bundle_name() -> str:
    """Return the name of the bundle's folder: that of the metadata, with underscores."""
    return re.sub(r"\W+", "_", read_metadata()["name"].lower())


def check_unused(title: str, model_info: Path) -> None:
    """Check that the zoo has no bundle of a name and version.

    Raises:
        InputError: it has one, or the file is no ``model_info.json``.
    """
    try:
        used = set(json.loads(model_info.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"model_info must be a copy of the zoo's model_info.json; {model_info} cannot be read ({reason_of(error)})."
        ) from error
    if title in used:
        raise InputError(f"The zoo has {title} already, by {model_info}; a release needs a new version.")
