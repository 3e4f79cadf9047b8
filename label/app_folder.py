"""Folders that the MONAI Label server reads: the app with its bundles, and the studies."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.transforms import LoadImage

from scripts.data import dicom
from scripts.data.cases import find_cases
from scripts.data.images import ImageFileReader
from scripts.errors import InputError, reason_of
from scripts.files import PARTIAL, RecordedDirectory, has_record, read_record, write_record

from .fit_record import model_digest
from .request_rules import name_error

LABEL = Path(__file__).parent
COPIED = (
    "answers",
    "batch",
    "bundle_tasks",
    "checks",
    "dicomweb_studies",
    "explanations",
    "fit_record",
    "label_files",
    "origins",
    "parameters",
    "parent_process",
    "read_only_studies",
    "request_rules",
    "routes",
    "series_frames",
    "server",
)
SERVER = {
    "main.py": LABEL / "app.py",
    **{f"{name}.py": LABEL / f"{name}.py" for name in COPIED},
    "dicom.py": Path(dicom.__file__),
    "dicom_objects.py": Path(dicom.__file__).parents[1] / "inference" / "dicom_objects.py",
}
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".png", ".jpg")  # of the images that MONAI Label takes from a folder
IGNORED = shutil.ignore_patterns(".*", "__pycache__")


@contextmanager
def open_output(output_dir: str) -> Iterator[RecordedDirectory]:
    """Open and lock the output folder of the server.

    Args:
        output_dir: the folder; created if missing.

    Yields:
        The folder.

    Raises:
        InputError: the folder holds foreign files, cannot be written, or another server uses it.
    """
    output = RecordedDirectory(output_dir)
    if not _is_of_0_4(output.path):
        output.check()
    try:
        output.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output_dir {output.path} cannot be made ({error.strerror}); give another.") from error
    with output.lock():
        if _is_of_0_4(output.path):
            _adopt(output.path)
        output.open()
        yield output


def make_app(output: RecordedDirectory, bundles: Iterable[Path]) -> Path:
    """Write the app: MONAI Label's app for bundles, the server of this bundle, and links to bundles in ``model/``.

    Args:
        output: output folder of the server, which gets ``app``; files of an earlier start are rewritten.
        bundles: folders of bundles in ``output``, named like their models.

    Returns:
        Folder of the app.

    Raises:
        InputError: a file of the app was changed or replaced.
    """
    sample = sample_app()
    files = {str(file.relative_to(sample)): file for file in sorted(sample.rglob("*.py"))}
    files["bundle_app.py"] = files.pop("main.py")
    for name, source in {**files, **SERVER}.items():
        place = Path("app", name)
        (output.path / place).parent.mkdir(parents=True, exist_ok=True)
        with output.write(str(place)) as partial:
            shutil.copyfile(source, partial)
    app = output.path / "app"
    for bundle in bundles:
        link(app / "model" / bundle.name, Path(os.path.relpath(bundle, app / "model")))
    return app


def sample_app() -> Path:
    """Find MONAI Label's app for bundles, which pip and uv install in different folders."""
    for file in importlib.metadata.files("monailabel") or []:
        if file.match("sample-apps/monaibundle/main.py"):
            return Path(str(file.locate())).parent
    raise InputError("MONAI Label is installed without its sample apps; install it with `make .venv-label/installed`.")


def copy_bundles(output: RecordedDirectory, bundles: Collection[Path]) -> list[Path]:
    """Copy bundles, so that training in MONAI Label changes only the copies.

    Args:
        output: output folder of the server; copies of an earlier start are kept, because they may have been trained.
        bundles: folders of bundles.

    Returns:
        Folders of the copies.

    Raises:
        InputError: a bundle is missing, or its model differs from that of the first start.
    """
    if len({bundle.name for bundle in bundles}) < len(bundles):
        raise InputError("Two bundles have the same name, which would be that of both models; rename a folder.")
    copies = []
    for bundle in bundles:
        if not (bundle / "configs" / "inference.json").is_file():
            raise InputError(
                f"There is no bundle in {bundle}; make one with `python -m scripts.export_bundle --output {bundle}`."
            )
        if output.path.resolve().is_relative_to(bundle.resolve()):
            raise InputError(f"output_dir {output.path} lies in the bundle {bundle}; give one outside it.")
        copy = output.path / "bundles" / bundle.name
        if not is_made_from(output, copy, {"bundle": str(bundle), "model": model_digest(bundle / "models/model.pt")}):
            partial = output.path / f"{PARTIAL}{bundle.name}"
            try:
                shutil.copytree(bundle, partial, ignore=IGNORED, ignore_dangling_symlinks=True)
                copy.parent.mkdir(exist_ok=True)
                os.replace(partial, copy)
            except OSError as error:
                raise InputError(f"{bundle} cannot be copied to {copy} ({reason_of(error)}).") from error
        copies.append(copy)
    return copies


def is_made_from(output: RecordedDirectory, target: Path, origin: dict[str, Any]) -> bool:
    """Return whether an earlier start copied a bundle from this origin; if there is no copy, record the origin.

    Args:
        output: output folder of the server.
        target: the copy in it.
        origin: digest of the model and further values, for JSON.

    Returns:
        Whether the copy exists.

    Raises:
        InputError: the copy exists, but has another or an unknown origin.
    """
    record = read_record(output.path)
    name = str(target.relative_to(output.path))
    origins = record["about"].setdefault("origins", {})
    if os.path.lexists(target):
        if origins.get(name) == origin:
            return True
        raise InputError(
            f"{target} was made from another model or with other settings, and may have been trained since; delete it "
            "to begin with these, or give another --output_dir."
        )
    origins[name] = origin
    write_record(output.path, record["files"], record["about"])
    return False


def link_studies(studies: Path, source: Path) -> list[str]:
    """Fill a folder of studies with links to images, so that MONAI Label writes nothing next to the originals.

    Args:
        studies: the folder; earlier labels and uploads are kept, links of an earlier start are removed.
        source: folder of images, or with one folder per case.

    Returns:
        Names of the cases, which are the image ids in MONAI Label.

    Raises:
        InputError: there are no images, MONAI Label does not support one, or the folder holds foreign files.
    """
    cases = find_cases(source, exclude=studies.parent)
    for name, target in _recorded_links(studies, source).items():
        if _points_to(studies / name, target):
            (studies / name).unlink()
    if has_record(studies):
        write_record(studies, {})
    return list(_link_all(studies, cases))


def link_normals(studies: Path, source: Path, taken: Collection[str] = ()) -> list[str]:
    """Add normal images with empty labels to a folder of studies; MONAI Label trains on them.

    Args:
        studies: see `link_studies`.
        source: folder of normal images, or with one folder per case.
        taken: names of the studies, which normal images must not have.

    Returns:
        Names of the cases.

    Raises:
        InputError: see `link_studies`; or a name is taken.
    """
    cases = find_cases(source, exclude=studies.parent)
    duplicates = sorted({case["case"] for case in cases}.intersection(taken))
    if duplicates:
        raise InputError(f"Studies and normals both have a case {duplicates[0]!r}; rename the files of one folder.")
    labels = studies / "labels" / "final"
    labels.mkdir(parents=True, exist_ok=True)
    paths = _link_all(studies, cases)
    for name, path in paths.items():
        label = labels / f"{name}.nii.gz"
        if not os.path.lexists(label):  # users may have edited it, or linked it to another label
            image = LoadImage(ImageFileReader())(path)
            nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), np.asarray(image.affine)), label)
    return list(paths)


def link(place: Path, target: Path) -> None:
    """Create a symbolic link, unless it exists.

    Raises:
        InputError: something else has its name.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    if _points_to(place, str(target)):
        return
    if os.path.lexists(place):
        raise InputError(f"{place} is not a link that this program made, such as an uploaded image; rename or move it.")
    place.symlink_to(target)


def _is_of_0_4(output: Path) -> bool:
    """Return whether a server of version 0.4, which kept no record, wrote a folder."""
    server = output / "app" / "server.py"
    return not has_record(output) and server.is_file() and "class Refusals" in server.read_text(errors="replace")


def _adopt(output: Path) -> None:
    """Add a record to a folder of version 0.4; labels stay in place, and the app is renamed."""
    origins = {file.name.removesuffix("_origin.json"): file for file in output.glob("*_origin.json")}
    os.replace(output / "app", output / "app_0.4")
    write_record(output, {}, {"origins": {name: json.loads(file.read_text()) for name, file in origins.items()}})


def _recorded_links(studies: Path, source: Path) -> dict[str, str]:
    """Return the targets, by name, of the links that this program made in a folder of studies."""
    if not studies.is_dir():
        return {}
    if has_record(studies):
        return dict(read_record(studies)["about"].get("links", {}))
    links = {entry.name: str(entry.readlink()) for entry in studies.iterdir() if entry.is_symlink()}
    is_of_0_4 = (studies / "datastore_v2.json").is_file()
    if any(studies.iterdir()) and not is_of_0_4:
        raise InputError(f"{studies} holds files that this program did not put there; rename it, and start again.")
    return {name: target for name, target in links.items() if Path(target).is_relative_to(source)}


def _points_to(place: Path, target: str) -> bool:
    return place.is_symlink() and str(place.readlink()) == target


def _link_all(studies: Path, cases: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Link cases and return their paths by name; the links are recorded before they are made."""
    paths = {case["case"]: _image_path(case) for case in cases}
    if wrong := next(filter(None, (name_error("The name of a case", name) for name in paths)), ""):
        raise InputError(f"{wrong} Rename the file.")
    suffixes = {name: next(each for each in SUFFIXES if path.endswith(each)) for name, path in paths.items()}
    links = {name + suffixes[name]: str(Path(path).resolve()) for name, path in paths.items()}
    about = read_record(studies)["about"] if has_record(studies) else {}
    studies.mkdir(parents=True, exist_ok=True)
    write_record(studies, {}, {**about, "links": {**about.get("links", {}), **links}})
    for name, target in links.items():
        link(studies / name, Path(target))
    return paths


def _image_path(case: dict[str, Any]) -> str:
    path = case.get("image", "")
    if not Path(path).is_file() or not path.endswith(SUFFIXES):
        raise InputError(
            f"MONAI Label does not take {case['case']!r} from a folder; expected files ({', '.join(SUFFIXES)}), so "
            "give DICOM series through a DICOMweb server."
        )
    return path
